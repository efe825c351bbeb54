"""The peers' schedules, the scorers that read no attention, and methods written as one word."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from conftest import greedy, prompts, tiny_llava
from oracle import Setting, oracle_logits

import st3
from st3.methods import METHODS, ST3, make_method, parse_methods
from st3.methods.peers import FastV
from st3.methods.scorers import SCORERS, LayerView


@pytest.mark.parametrize(
    ("spec", "keeps"),
    [
        ("fastv", [1, 1] + [0.5] * 10),
        ("fastv:k=3,r=75%", [1] * 3 + [0.25] * 9),
        ("vtw", [1] * 6 + [0] * 6),
        ("vtw:k=1", [1] + [0] * 11),
        ("pyramiddrop", [1] * 3 + [0.5] * 3 + [0.25] * 3 + [0.125] * 3),
        ("pyramiddrop:stages=2,ratio=0.1", [1] * 6 + [0.1] * 6),
        ("random:stride=4,ratio=0.1", [1] * 3 + [0.5] * 3 + [0.4] * 4 + [0.3] * 2),
        ("uniform:prune_ratio=20%,stride=9,ratio=0.3", [1] * 3 + [0.8] * 8 + [0.5]),
    ],
)
def test_schedules(spec: str, keeps: list[float]) -> None:
    assert make_method(spec).schedule(12).keeps == pytest.approx(keeps)


PEERS = {
    "fastv": ("fastv:k=2,r=0.5", lambda layer: 1 if layer <= 2 else 0.5),
    "fastv early": ("fastv:k=1,r=0.75", lambda layer: 1 if layer <= 1 else 0.25),
    "vtw": ("vtw:k=4", lambda layer: 1 if layer <= 4 else 0),
    "pyramiddrop": ("pyramiddrop:stages=3", lambda layer: 0.5 ** ((layer - 1) * 3 // 10)),
}


@pytest.mark.parametrize("rows", [["tttItttt"], ["ttItttt", "tItIttttt", "ttttt"]])
@pytest.mark.parametrize("name", PEERS)
def test_peers_equal_the_masked_oracle(name: str, rows: list[str]) -> None:
    spec, keep = PEERS[name]
    model, inputs = tiny_llava(), prompts(*rows)
    with st3.trim(model, spec) as session:
        result = greedy(model, inputs, 6)
    answer = result.sequences[:, inputs["input_ids"].shape[1] :]
    with torch.no_grad():
        expected, kept = oracle_logits(model, inputs, answer, Setting(keeps=keep))
    got = torch.stack(result.logits, dim=1)
    torch.testing.assert_close(got, expected.float(), atol=1e-5, rtol=1e-5)
    visual = inputs["input_ids"] == model.config.image_token_id
    for row in range(len(rows)):
        numbers = (visual[row].long().cumsum(0) - 1).tolist()
        for layer in range(1, 11):
            assert session.kept(layer, row) == [numbers[i] for i in kept[row][layer - 1]]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trims_to_its_schedule(name: str) -> None:
    rows = ("ttItttt", "tItIttttt")
    rows = rows[name == "evs" :]  # which wants two pictures, frames here, in every row
    model, inputs = tiny_llava(), prompts(*rows)
    with st3.trim(model, name) as session:
        greedy(model, inputs, 5)
    schedule = make_method(name).schedule(10)
    for row, pictures in enumerate(asked.count("I") for asked in rows):
        visual = 64 * pictures
        want = [schedule.count(layer, visual, pictures=pictures) for layer in range(1, 11)]
        if make_method(name).schedule(10).entering.adaptive:  # at most so many
            assert 0 < session.kept_per_layer(row)[0] <= want[0]
            continue
        assert session.kept_per_layer(row) == want
        alive = [set(session.kept(layer, row)) for layer in range(1, 11)]
        assert [len(kept) for kept in alive] == want
        assert all(b <= a for a, b in pairwise(alive))


def view(visual: int, before: int = 3, after: int = 5) -> LayerView:
    """Random keys; `visual` visual tokens in the middle."""
    torch.manual_seed(0)
    tokens = before + visual + after
    here = torch.zeros(1, tokens, dtype=torch.bool)
    here[:, before : before + visual] = True
    ordinal = (here.long().cumsum(1) - 1).clamp_min(0)
    states = torch.randn(2, 1, 2, tokens, 8)
    return LayerView(states[0], states[1], 0.3, None, here, ordinal, visual, after)


@pytest.mark.parametrize("visual", [576, 100, 2880])
@pytest.mark.parametrize("share", [0.5, 0.22, 0.05])
def test_uniform_spreads_evenly(visual: int, share: float) -> None:
    """No stretch of the picture has more than its part, give or take two tokens."""
    seen = view(visual)
    score = SCORERS["uniform"].score(seen)[0, 3 : 3 + visual]
    kept = torch.zeros(visual, dtype=torch.long)
    kept[score.argsort(descending=True)[: round(share * visual)]] = 1
    sums = torch.cat((torch.zeros(1, dtype=torch.long), kept.cumsum(0)))
    for width in (5, 24, visual // 3):
        inside = sums[width:] - sums[:-width]
        assert (inside - share * width).abs().max() <= 2.01


def test_key_norm_prefers_small_keys() -> None:
    seen = view(20)
    seen.key[0, :, 7] *= 0.01
    seen.key[0, :, 9] *= 100
    score = SCORERS["key-norm"].score(seen)[0]
    assert int(score.argmax()) == 7
    assert int(score.argmin()) == 9
    norms = [float(sum((seen.key[0, h, n] ** 2).sum().sqrt() for h in range(2))) for n in range(28)]
    assert (-2 * score).tolist() == pytest.approx(norms)


def test_specs() -> None:
    found = parse_methods("none, st3:tau=none,stride=2 ,fastv:k=3,r=25%,vtw, st3")
    assert list(found) == ["none", "st3:tau=none,stride=2", "fastv:k=3,r=25%", "vtw", "st3"]
    assert found["fastv:k=3,r=25%"] == FastV(k=3, r=0.25)
    assert found["st3:tau=none,stride=2"] == ST3(tau=None, stride=2)
    assert make_method("st3:scorer=prompt", tau=5) == ST3(tau=5, scorer="prompt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no method in ''; known: none, pvtp"),
        ("none,quick", "unknown method 'quick'; known: none, pvtp, vta, st3, fastv"),
        ("fastv:x=2", "no parameter 'x'; it has: scorer, kv_cache_dtype, k, r"),
        ("fastv:k", "name=value, got 'k'"),
        ("fastv:k=", "name=value, got 'k='"),
        ("fastv:k=two", "k must be a whole number, got 'two'"),
        ("fastv:r=many", "r must be a number, got 'many'"),
        ("fastv:k=1,k=2", "k is given twice"),
        ("st3:scorer=best", "unknown scorer 'best'"),
        ("k=2", "unknown method 'k=2'"),
    ],
)
def test_bad_specs(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        parse_methods(text)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("fastv:k=12", r"K must lie in 1\.\.11 for 12 layers, got 12"),
        ("vtw:k=0", r"K must lie in 1\.\.11"),
        ("fastv:r=2", "R must lie between 0 and 1, got 2"),
        ("pyramiddrop:stages=13", r"stages must lie in 1\.\.12"),
        ("pyramiddrop:ratio=-1", "ratio must lie between 0 and 1"),
    ],
)
def test_parameters_that_do_not_fit(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_method(spec).schedule(12)
