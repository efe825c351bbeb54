"""Pictures in later turns of a conversation: each is scored, cut and annealed as the first is."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
from families.talk import Talk, oracle
from families.zoo import ZOO

import st3
from st3.engine.plan import Plan
from st3.families.parts import find_parts
from st3.methods import make_method

FAMILIES = [
    "llava", "qwen2_5_vl", "qwen3_vl", "llava_onevision", "gemma3", "internvl, qwen3", "mistral3",
    "cohere2_vision", "glm4v",
]  # fmt: skip
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("none", {}),
    "pvtp": ("pvtp", {"prune_ratio": 0.5, "stride": 1, "ratio": 0.15}),
    "st3": ("st3", {"prune_ratio": 0.5, "stride": 1, "ratio": 0.15, "tau": 13}),
    "vta": ("vta", {"tau": 9}),
    "fastv": ("fastv", {"k": 2, "r": 0.5}),
}
TALK = (("ttIItttt",), ("tItt",), ("ttt",), ("tIIttt",))
FILMED = (("ttIttt",), ("tVtt",), ("ttt",), ("tVItttt",))
PADDED = (("ttIIttttt", "tItt"), ("tItt", "tIItttt"), ("ttt", "tttt"), ("tIIt", "ttttt"))


@lru_cache(maxsize=2)
def _model(name: str) -> Any:
    return ZOO[name].build()


@lru_cache
def _stock_goes_on(name: str) -> bool:
    """Whether a picture in a later turn is to stock what it is in a first: not so in old versions,
    of families whose pictures are seen in both directions.
    """
    talk = Talk(_model(name), ZOO[name].inputs)
    for rows in TALK[:2]:
        talk.say(rows)
    plan = Plan.of(make_method("none"), find_parts(talk.model))
    want, _ = oracle(talk, [plan] * 2)
    return bool((talk.said[1] - want[1]).abs().max() < 1e-3)


def _held(name: str, turns: Any, method: str) -> tuple[Talk, Any]:
    if not ZOO[name].known:
        pytest.skip(f"this transformers has no {ZOO[name].config}")
    if not _stock_goes_on(name):
        pytest.skip("in this transformers a picture in a later turn is not what it is in a first")
    model, tiny = _model(name), ZOO[name]
    talk = Talk(model, tiny.inputs)
    known, parameters = METHODS[method]
    with st3.trim(model, known, **parameters) as session:
        for rows in turns:
            talk.say(rows)
        record = session.record
        assert session.cache is not None
        assert session.cache.live_bytes == session.kv_bytes[-1]
    return talk, record


@pytest.mark.parametrize("name", ["qwen3_5", "lfm2_vl"])
def test_with_recurrent_layers_untrimmed_is_stock(name: str) -> None:
    """What is trimmed there has no oracle of several turns."""
    talk, record = _held(name, TALK, "none")
    want, _ = oracle(talk, [record.plan] * 4)
    for said, wanted in zip(talk.said, want, strict=True):
        torch.testing.assert_close(said, wanted, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("method", ["none", "pvtp", "st3", "fastv"])
@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "llava_onevision"])
def test_videos_in_later_turns(name: str, method: str) -> None:
    _check(*_held(name, FILMED, method), FILMED)


@pytest.mark.parametrize("turns", [TALK, PADDED], ids=["one", "padded"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", FAMILIES)
def test_four_turns_are_one_run_with_the_same_choices(name: str, method: str, turns: Any) -> None:
    _check(*_held(name, turns, method), turns)


def _check(talk: Talk, record: Any, turns: Any) -> None:
    """One run of stock over all of it says the same, and keeps the same."""
    pictured = [turn for turn in range(4) if talk.visual(turn).any()]
    assert len(record.turns) == len(pictured)
    plans: list[Any] = [record.plan] * 4
    for turn, plan in zip(pictured, record.turns, strict=True):
        plans[turn] = plan
    want, hidden = oracle(talk, plans)
    for said, wanted in zip(talk.said, want, strict=True):
        torch.testing.assert_close(said, wanted, atol=1e-4, rtol=1e-5)
    for row in range(len(turns[0])):
        everyone = sorted(place for turn in hidden for place in turn.everyone(row))
        for layer in range(1, 7):
            alive = [
                place
                for turn, begun in zip(hidden, talk.begun, strict=True)
                for place in turn.alive(layer, row, record.generated - begun)
            ]
            kept = record.kept(layer, row, record.generated)
            assert kept == [everyone.index(place) for place in sorted(alive)]
            assert record.kept_per_layer(row, record.generated)[layer - 1] == len(kept)
