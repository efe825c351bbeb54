"""Tensor parallelism: two processes with half of the heads each do what one does with all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from families import ranks
from families.zoo import ZOO
from filelock import FileLock
from torchrun import torchrun

from st3.engine.plan import Plan
from st3.families.base import visual_mask
from st3.families.parts import find_parts
from st3.methods import make_method
from st3.verification.choice import Choice
from st3.verification.masked import Hidden, masked_logits

_LAYERS = "model.language_model.layers.*"
_COLUMNS = dict.fromkeys(
    [f"{_LAYERS}.self_attn.{name}_proj" for name in "qkv"]
    + [f"{_LAYERS}.mlp.{name}_proj" for name in ("gate", "up")],
    "colwise",
)
_ROWS = dict.fromkeys([f"{_LAYERS}.self_attn.o_proj", f"{_LAYERS}.mlp.down_proj"], "rowwise")
PLANS: dict[str, Any] = {
    "llava": "auto",
    "qwen2_5_vl": "auto",
    "gemma3": "auto",
    "qwen3_vl": _COLUMNS | _ROWS,  # transformers has no plan for its layers
}
CASES: list[tuple[str, str, tuple[tuple[str, Any], ...]]] = [
    ("padded", "st3", (*ranks.CUTS.items(), ("tau", 9))),
    ("one", "fastv", (("k", 1), ("r", 0.5))),
    *(
        ("padded", "pvtp", (*ranks.CUTS.items(), ("scorer", scorer)))
        for scorer in (
            "last-token", "last-token-max", "key-norm", "prompt-3-layers", "random", "uniform",
            "frames-in-turn",
        )
    ),
]  # fmt: skip


def _said(case: Any) -> str:
    return f"{case[1]}, {dict(case[2]).get('scorer', 'last-token')}"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Whole models and their prompts; and what two ranks made of them, once for all workers."""
    folder = tmp_path_factory.getbasetemp() / "ranks"
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = tmp_path_factory.getbasetemp().parent / "ranks"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            folder.mkdir()
            _make(folder)
    asked = torch.load(folder / "asked.pt", weights_only=False)
    whole = {name: (ZOO[name].build(), inputs) for name, (_, inputs, _) in asked.items()}
    return whole, [torch.load(Path(folder, f"{rank}.pt"), weights_only=False) for rank in (0, 1)]


def _make(folder: Path) -> None:
    asked = {}
    for name, plan in PLANS.items():
        model, tiny = ZOO[name].build(), ZOO[name]
        if plan == "auto" and "lm_head" not in model.tp_plan:  # transformers 5.17's Gemma 3 fails
            plan = model.tp_plan | {"lm_head": "colwise_gather_output"}
        inputs = {kind: tiny.inputs(model, getattr(tiny, kind)) for kind in ("one", "padded")}
        model.save_pretrained(folder / name)
        asked[name] = plan, inputs, CASES
    torch.save(asked, folder / "asked.pt")
    code, _, said = torchrun(ranks.__file__, str(folder))
    assert not code, said


@pytest.mark.parametrize("case", CASES, ids=_said)
@pytest.mark.parametrize("name", PLANS)
def test_two_ranks_are_one(name: str, case: Any, made: Any) -> None:
    """And the oracle, which runs the whole model."""
    (model, inputs), both = made[0][name], [rank[name][case] for rank in made[1]]
    kind, method, how = case
    assert both[0]["kept"] == both[1]["kept"]
    assert both[0]["left"] == both[1]["left"]
    assert torch.equal(both[0]["logits"], both[1]["logits"])
    parts, scorer = find_parts(model), dict(how).get("scorer", "last-token")
    if scorer == "key-norm" and hasattr(parts.layers[0].self_attn, "k_norm"):
        return  # its keys are all as long: rounding chooses
    asked, one = inputs[kind], ranks.outcome(model, inputs[kind], method, dict(how))
    for rank in both:
        assert torch.equal(rank["tokens"], one["tokens"])
        assert rank["kept"] == one["kept"]
        assert rank["left"] == one["left"]
        torch.testing.assert_close(rank["logits"], one["logits"], atol=1e-5, rtol=1e-5)
        assert [2 * size for size in rank["bytes"]] == one["bytes"]
        assert [2 * size for size in rank["untrimmed"]] == one["untrimmed"]
    visual = visual_mask(parts.visual_ids, asked["input_ids"]) & asked["attention_mask"].bool()
    plan = Plan.of(make_method(method, **dict(how)), parts, tokens=visual.shape[1])
    hidden = Hidden(plan.schedule, plan.groups, visual, parts.lenders, Choice(scorer))
    answer = one["tokens"][:, visual.shape[1] :]
    with torch.no_grad():
        want = masked_logits(model, parts.decoder, asked, answer, hidden)
    torch.testing.assert_close(both[0]["logits"], want, atol=1e-4, rtol=1e-5)
    assert len(one["kept"][-1][0]) < len(one["kept"][0][0])


@pytest.mark.parametrize("name", PLANS)
def test_alone_each_rank_would_keep_other_tokens(name: str, made: Any) -> None:
    """So that what is above could fail."""
    first, second = (rank[name]["alone"]["kept"] for rank in made[1])
    assert first != second


@pytest.mark.parametrize("name", PLANS)
def test_the_model_is_left_as_it_was(name: str, made: Any) -> None:
    for rank in made[1]:
        assert rank[name]["left as it was"]


@pytest.mark.parametrize("name", PLANS)
def test_a_scorer_of_one_process_is_refused(name: str, made: Any) -> None:
    for rank in made[1]:
        assert "'own' sees the heads of one process alone" in rank[name]["refused"]
        assert "LayerView.merged" in rank[name]["refused"]


@pytest.mark.parametrize("name", PLANS)
def test_steps_are_not_replayed(name: str, made: Any) -> None:
    """Said in a warning; the rest goes on."""
    (model, inputs), how = made[0][name], ranks.CUTS | {"tau": 9}
    one = ranks.outcome(model, inputs["one"], "st3", how)
    for rank in made[1]:
        assert any("wait for other processes" in line for line in rank[name]["heard"])
        assert rank[name]["compiled"]["kept"] == one["kept"]
        assert torch.equal(rank[name]["compiled"]["tokens"], one["tokens"])
