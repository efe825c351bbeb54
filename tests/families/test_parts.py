"""Does a model fit? What does not is refused with the part that does not, without any weights."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import flash
import pytest
import torch
import transformers
from conftest import greedy, prompts, tiny_config, tiny_llava
from families.table import MADE_WITH, table, written
from families.zoo import ZOO
from transformers import AutoConfig

import st3
from st3.engine.attention import stock_attention
from st3.families.parts import find_parts, judge, unproven
from st3.families.proven import PROVEN


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("florence2", "it is an encoder-decoder"),
        ("mllama", "layer 1 of its decoder takes 'cross_attention_mask'"),
        ("blip-2", "no decoder with layers"),
        ("kosmos-2", "names no placeholder"),
        ("llama", "none that answers questions about pictures"),
    ],
)
def test_families_that_do_not_fit(family: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        judge(AutoConfig.for_model(family))


def test_the_convention_needs_no_file() -> None:
    """A family nobody has heard of, whose model follows the convention, works, with a warning."""
    model = tiny_llava()
    model.config.model_type = "of_tomorrow"
    inputs = prompts("ttItttt")
    with (
        pytest.warns(
            UserWarning, match="'of_tomorrow' .* fits, but no oracle has proven it"
        ) as seen,
        st3.trim(model, "st3"),
    ):
        assert greedy(model, inputs, 3).sequences.shape == (1, 73)
    assert seen[0].filename == __file__
    judge(tiny_config())


def _own_config(model: Any) -> None:
    attention = model.model.language_model.layers[2].self_attn
    attention.config = copy.copy(attention.config)


def _other_kind(model: Any) -> None:
    model.config.text_config.layer_types = ["full_attention"] * 9 + ["indexed_attention"]


def _no_positions(model: Any) -> None:
    class Layer(type(model.model.language_model.layers[0])):  # type: ignore[misc]
        def forward(self, hidden_states: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
            return hidden_states

    model.model.language_model.layers[4].__class__ = Layer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_own_config, "layer 3 of its decoder holds a configuration of its own"),
        (_other_kind, "layers of the kind 'indexed_attention'"),
        (_no_positions, "layer 5 of its decoder makes its positions by itself"),
    ],
)
def test_parts_that_do_not_fit(change: Any, message: str) -> None:
    model = tiny_llava()
    change(model)
    with pytest.raises(ValueError, match=message), st3.trim(model, "st3"):
        pass


@pytest.mark.parametrize("name", ["gemma3", "qwen3_5", "gemma4, shared keys", "llama4"])
def test_recordings_are_refused_where_they_would_be_wrong(name: str) -> None:
    model = ZOO[name].build()
    inputs = ZOO[name].inputs(model, ZOO[name].one)
    with st3.trim(model, "none"):
        want = greedy(model, inputs, 4).sequences
    with (
        pytest.warns(UserWarning, match="see a window, keep a state or borrow keys"),
        st3.trim(model, "none", compile="inductor"),
    ):
        got = greedy(model, inputs, 4).sequences
    assert torch.equal(got, want)


def test_a_layer_that_does_not_call_our_attention_is_an_error() -> None:
    """It would be neither scored nor cached, and untrimmed it would even look right."""
    model, inputs = tiny_llava(), prompts("ttItttt")
    attention = model.model.language_model.layers[7].self_attn

    def skip(hidden_states: Any, **_: Any) -> Any:
        return torch.zeros_like(hidden_states), None

    attention.forward = skip
    with (
        pytest.raises(RuntimeError, match="layer 8 of the decoder did not call attention"),
        st3.trim(model, "none"),
    ):
        greedy(model, inputs, 2)


def test_a_mask_from_elsewhere_is_an_error() -> None:
    """Were it dropped, the answer would be wrong without a word."""
    model, inputs = tiny_llava(), prompts("ttItttt")
    layer = model.model.language_model.layers[1]

    def mask(module: Any, args: Any, kwargs: Any) -> Any:
        return args, kwargs | {"attention_mask": torch.ones(1, 1, 70, 70, dtype=torch.bool)}

    layer.register_forward_pre_hook(mask, with_kwargs=True)
    with pytest.raises(RuntimeError, match="mask where st3 does not see it"), st3.trim(model):
        greedy(model, inputs, 2)


@pytest.mark.parametrize("name", ["gemma3", "llava_next, sliding mistral"])
def test_windows_under_flash_attention(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It knows no windows over gaps: where one limits, SDPA takes over."""
    model = ZOO[name].build()
    inputs = ZOO[name].inputs(model, ZOO[name].padded)
    parameters = {"prune_ratio": 0.5, "stride": 1, "ratio": 0.15, "tau": 9}
    with st3.trim(model, "st3", **parameters):
        want = greedy(model, inputs, suppress_tokens=list(range(93, 100)))
    called: list[str] = []

    def choose(module: Any, backend: str) -> Any:
        called.append(backend)
        return stock_attention(module, backend)

    flash.play(monkeypatch)

    monkeypatch.setattr("st3.engine.forward.stock_attention", choose)
    find_parts(model).decoder.config._attn_implementation = {"": "flash_attention_2"}
    with st3.trim(model, "st3", **parameters):
        got = greedy(model, inputs, suppress_tokens=list(range(93, 100)))
    assert torch.equal(got.sequences, want.sequences)
    for mine, theirs in zip(got.logits, want.logits, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    assert {*called} == (
        {"sdpa"} if name.startswith("llava_next") else {"flash_attention_2", "sdpa"}
    )


def test_an_argument_of_the_decoder_that_we_do_not_know() -> None:
    """Features that a decoder adds to all its tokens would meet those that are left."""
    model = tiny_llava()

    class Decoder(type(model.model.language_model)):  # type: ignore[misc]
        def forward(self, unheard_of_features: Any = None, **kwargs: Any) -> Any:
            return super().forward(**kwargs)

    model.model.language_model.__class__ = Decoder
    with (
        pytest.raises(ValueError, match="its decoder takes 'unheard_of_features'"),
        st3.trim(model, "st3"),
    ):
        pass


def test_what_is_proven_is_what_the_zoo_holds() -> None:
    found: dict[str, set[str]] = {}
    for tiny in ZOO.values():
        if tiny.known:
            config = tiny.configuration()
            found.setdefault(config.model_type, set()).add(config.get_text_config().model_type)
    assert {family: {*PROVEN[family]} for family in found} == found
    if all(tiny.known for tiny in ZOO.values()):
        assert {*PROVEN} == {*found}


def test_what_is_not_proven_is_said() -> None:
    assert unproven(tiny_config()) is None
    assert unproven(tiny_llava()) is None
    config = tiny_config()
    config.text_config.model_type = "of_tomorrow"
    line = unproven(config)
    assert line is not None
    assert line.startswith("the family 'llava' with a 'of_tomorrow' text model fits")
    assert "\n" not in line


def test_the_table_of_families_is_what_is_found() -> None:
    if transformers.__version__ != MADE_WITH:
        pytest.skip(f"the table lists the families of transformers {MADE_WITH}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert table() == written()
