"""Two methods in one: what they are, what goes together, and what the oracle says of them."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from conftest import greedy, prompts, tiny_llava

import st3
from st3.engine.plan import Plan
from st3.families.parts import find_parts
from st3.methods import make_method, parse_methods
from st3.methods.budget import Budget
from st3.methods.scorers import InOrder
from st3.verification.masked import Hidden, masked_logits


def test_it_is_both() -> None:
    method: Any = make_method("divprune:keep=50%+st3:tau=64,stride=2")
    assert (method.name, method.scorer, method.tau) == ("divprune+st3", "last-token", 64)
    assert method.before == make_method("divprune:keep=50%")
    assert method.inside == make_method("st3:tau=64,stride=2")
    schedule, inside = method.schedule(12), method.inside.schedule(12)
    assert schedule.entering == Budget(share=0.5)
    assert schedule.inside == inside
    assert schedule.count(12, 576) == inside.count(12, 288)  # of what entered (ours)
    assert make_method("divprune:keep=50%+st3", tau=64, stride=2) == method
    assert make_method("divprune+st3", keep=0.5, tau=64, stride=2).schedule(12) == schedule
    assert method.changed(tau=9, keep=0.5).inside.tau == 9
    assert pickle.loads(pickle.dumps(method)) == method
    settings = method.settings(12)
    assert settings["before"] == {
        "name": "divprune", "keep": 0.5, "per": "picture", "positions": "original",
    }  # fmt: skip
    assert settings["inside"]["name"] == "st3"
    assert settings["inside"]["tau"] == 64
    assert settings["inside"]["stride"] == 2


def test_in_a_list() -> None:
    found = parse_methods(
        "none,visionzip:per=prompt,keep=50%+st3:tau=64,stride=2,fastervlm:drop-90%+fastv,k=3,r=0.1,vtw"
    )
    assert list(found) == [
        "none", "visionzip:per=prompt,keep=50%+st3:tau=64,stride=2",
        "fastervlm:drop-90%+fastv:k=3,r=0.1", "vtw",
    ]  # fmt: skip
    assert [method.name for method in found.values()] == [
        "none", "visionzip+st3", "fastervlm+fastv", "vtw",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("st3+divprune", "the first must drop before the decoder, and st3 does not"),
        ("dpp+divprune", "the second must drop inside the decoder, and divprune does not"),
        ("dpp+st3+fastv", "a composition has two methods, one before the decoder"),
        ("dpp:tau=9+st3", "tau=9 of dpp is about what happens inside the decoder: leave it to st3"),
        ("dpp:scorer=prompt+st3", "scorer=prompt of dpp is about what"),
        ("dpp:kv_cache_dtype=int8+st3", "leave it to st3"),
        ("vscan+st3", "scorer=last-token of vscan is about what"),
        ("dpp+st3:scorer=divprune", "scorer=dpp or one of attention can"),
        ("dpp+stt", "unknown method 'stt'"),
        ("dpp+st3:keep=3", "method 'st3' has no parameter 'keep'"),
    ],
)
def test_what_does_not_go_together(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_method(spec)


def test_the_order_of_the_first_may_decide_inside() -> None:
    """`scorer=A`: PVTP and annealing drop the last of the order, and no layer is asked."""
    model = tiny_llava()
    method = make_method("divprune:keep=32+st3:scorer=divprune,stride=2,tau=9")
    assert isinstance(Plan.of(method, find_parts(model)).scorer, InOrder)
    with st3.trim(model, method) as session:
        greedy(model, prompts("ttItttt"), 6)
        order = session.record.turns[0].entered(0)
        for layer in (1, 4, 10):
            for generated in (0, 4):
                count = method.schedule(10).count(layer, 64, generated)
                assert session.kept(layer, 0, generated) == sorted(order[:count])


@pytest.mark.parametrize(
    "spec",
    [
        "visionzip:keep=50%+st3:stride=2,ratio=0.1,tau=9", "prumerge_plus+fastv:k=3,r=50%",
        "tome:keep=20+pvtp:scorer=key-norm", "vscan:keep=50%",
    ],
)  # fmt: skip
def test_what_comes_after_is_the_masked_oracle_s(spec: str) -> None:
    """Two rows, padded, several pictures: chosen and merged first, then by attention."""
    from st3.verification.choice import Choice

    model, inputs = tiny_llava(), prompts("ttIttItttt", "tItt")
    with st3.trim(model, spec) as session:
        ours = greedy(model, inputs, 6)
        record = session.record
        assert session.cache.live_bytes == session.kv_bytes[-1]  # type: ignore[union-attr]
    visual = inputs["input_ids"] == model.config.image_token_id
    places = [row.nonzero().flatten().tolist() for row in visual]
    turn, plan = record.turns[0], record.plan
    said = Hidden(
        plan.schedule, plan.groups, visual, {}, Choice(plan.method.scorer),
        entered=[[places[row][n] for n in turn.entered(row)] for row in (0, 1)],
        embeddings=turn.merged,
    )  # fmt: skip
    answer = ours.sequences[:, inputs["input_ids"].shape[1] :]
    with torch.no_grad():
        want = masked_logits(model, model.model.language_model, inputs, answer, said)
    torch.testing.assert_close(torch.stack(ours.logits, 1), want, atol=1e-4, rtol=1e-5)
    for row in (0, 1):
        for layer in range(1, 11):
            alive = sorted(places[row].index(place) for place in said.alive(layer, row, 3))
            assert session.kept(layer, row, 3) == alive
            assert len(alive) == plan.schedule.inside.count(layer, turn.entering[row], 3)
