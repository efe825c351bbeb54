"""Methods with a score of their own, in several kinds of family: what comes after their choice."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
from conftest import greedy as any_greedy
from families.talk import Talk
from families.zoo import ZOO

import st3
from st3.engine import insight
from st3.families.base import visual_mask
from st3.families.parts import find_parts
from st3.methods import make_method
from st3.methods.inside import insiders
from st3.verification.choice import Choice
from st3.verification.masked import Hidden, masked_logits


def greedy(model: Any, inputs: dict[str, Any], new: int = 4) -> Any:
    return any_greedy(model, inputs, new, suppress_tokens=list(range(93, 100)))


@lru_cache(maxsize=2)
def _model(name: str) -> Any:
    return ZOO[name].build()


@pytest.mark.parametrize("method", insiders())
@pytest.mark.parametrize(
    ("name", "kind"), [("qwen2_5_vl", "filmed"), ("gemma3", "padded"), ("qwen3_vl", "padded")]
)
def test_what_a_cut_leaves_is_all_that_is_seen(name: str, kind: str, method: str) -> None:
    """Three axes and frames, windows, DeepStack."""
    model = _model(name)
    inputs = ZOO[name].inputs(model, getattr(ZOO[name], kind))
    mask = inputs["attention_mask"]
    parts = find_parts(model)
    visual = visual_mask(parts.visual_ids, inputs["input_ids"]) & mask.bool()
    with st3.trim(model, method) as session:
        ours = greedy(model, inputs)
        plan = session.record.plan
        assert session.cache.live_bytes == session.kv_bytes[-1]  # type: ignore[union-attr]
    answer = ours.sequences[:, inputs["input_ids"].shape[1] :]
    choice = Choice(told=session.kept, tolerance=float("inf"))
    said = Hidden(plan.schedule, plan.groups, visual, parts.lenders, choice)
    with torch.no_grad():
        want = masked_logits(model, parts.decoder, inputs, answer, said)
    for row, many in enumerate(visual.sum(1).tolist()):
        counts = [plan.schedule.count(layer, many) for layer in range(1, 7)]
        assert [len(session.kept(layer, row)) for layer in range(1, 7)] == counts
        assert counts[-1] < many
    got = torch.stack(ours.logits, 1)
    torch.testing.assert_close(got, want.to(got.dtype), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl", "llama4", "glm4v"])
def test_without_positions_is_as_if_all_stood_at_one(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Whatever rotates them: two axes or three, halves or pairs, complex numbers."""
    if name not in ZOO or not ZOO[name].known:
        pytest.skip(f"no {name} here")
    model = _model(name)
    inputs = ZOO[name].inputs(model, ("ttItItttt",))
    view: list[torch.Tensor] = []
    ours = insight._nought

    def at_one(phases: Any) -> Any:
        if isinstance(phases, tuple):
            return tuple(at_one(part) for part in phases)
        dim = phases.dim() - 2
        return phases.narrow(dim, 5, 1).expand_as(phases)

    for phases in (ours, at_one, lambda phases: phases):
        monkeypatch.setattr(insight, "_nought", phases)
        method: Any = make_method("fastv_norope:k=1")

        score = type(method).score

        def spy(self: Any, seen: Any, score: Any = score) -> torch.Tensor:
            view.append(score(self, seen))
            return view[-1]

        monkeypatch.setattr(type(method), "score", spy)
        with st3.trim(model, method):
            greedy(model, inputs, 1)
        monkeypatch.undo()
    torch.testing.assert_close(view[0], view[1], atol=1e-6, rtol=1e-4)
    if name != "llama4":  # whose layers that see everything turn nothing
        assert (view[0] - view[2]).abs().max() > 1e-3
    assert view[0][0].sum() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("method", insiders())
def test_pictures_of_later_turns(method: str) -> None:
    """Among what was said before, whose keys lie in front; rows of unlike lengths."""
    talk = Talk(_model("llava"), ZOO["llava"].inputs)
    schedule = make_method(method).schedule(6)
    with st3.trim(talk.model, method) as session:
        for rows in (("ttIIttttt", "tItt"), ("tItt", "tIItttt"), ("ttt", "tttt")):
            talk.say(rows)
        assert session.cache is not None
        assert session.cache.live_bytes == session.kv_bytes[-1]
    for turn in session.record.turns:
        for row, many in enumerate(turn.prompt.visual):
            for layer in range(1, 7):
                alive = turn.alive(layer, row, session.generated)
                assert len({*alive}) == len(alive) == schedule.count(layer, many)
