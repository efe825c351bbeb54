"""A method's dial against the schedule itself, tried value by value."""

from __future__ import annotations

import pytest

from st3.methods import METHODS, Method, make_method
from st3.methods.dial import turned

TOKENS, LAYERS = 576, 32
TURNED = [name for name, method in METHODS.items() if method.dial is not None]


def count(method: Method) -> float:
    """Visual tokens of a layer, one by one."""
    schedule = method.schedule(LAYERS)
    return sum(schedule.count(layer, TOKENS) for layer in range(1, LAYERS + 1)) / LAYERS


@pytest.mark.parametrize("tokens", [128, 192])
@pytest.mark.parametrize("name", TURNED)
def test_as_many_tokens_as_were_asked_for(name: str, tokens: int) -> None:
    method = make_method(name)
    assert method.dial is not None
    least = {"pyramiddrop": 144, "evs": 576, "feather": 160}.get(name, 0)  # no video; first cuts
    if tokens < least:
        with pytest.raises(ValueError, match=f"{name} leaves {least} to 576 tokens"):
            turned(method, LAYERS, tokens, count)
        return
    found = turned(method, LAYERS, tokens, count)
    # A whole number is the nearest there is: with vtw a layer is worth 18 tokens.
    assert abs(count(found) - tokens) <= (TOKENS / LAYERS / 2 if method.dial.whole else 1)


def test_no_other_layer_is_nearer() -> None:
    found = turned(make_method("vtw"), LAYERS, 128, count)
    every = [make_method("vtw", k=k) for k in range(1, LAYERS)]
    assert found == min(every, key=lambda method: abs(count(method) - 128))


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"st3 leaves \d+ to \d+ tokens a layer, and not 20"):
        turned(make_method("st3"), LAYERS, 20, count)
    with pytest.raises(ValueError, match="none has no setting"):
        turned(make_method("none"), LAYERS, 64, count)


def test_other_parameters_stay() -> None:
    found = turned(make_method("fastv:k=3"), LAYERS, 192, count)
    assert getattr(found, "k", None) == 3
