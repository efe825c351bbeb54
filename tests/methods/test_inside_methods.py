"""Each method with a score of its own in the decoder, against loops: what stays, what is said."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import greedy, prompts, tiny_llava
from methods import inside_reference as reference
from torch.utils._python_dispatch import TorchDispatchMode

import st3
from st3.methods import METHODS, make_method
from st3.methods.inside import insiders
from st3.methods.inside.fitprune import fitted_keeps
from st3.methods.inside.sparsevlm import _parts
from st3.methods.pivots import unlike
from st3.methods.recycling import clustered
from st3.methods.scorers import ByMethod, LayerView
from st3.sweep.calibrate import masses_of

CUTS: dict[str, reference.Cut] = {
    "dart": lambda seen: reference.dart(seen, 4, 4),
    "dart:k=1,keep=7%,pivots=6,text_pivots=1": lambda seen: reference.dart(seen, 6, 1),
    "dart:k=3,keep=4%,pivots=0,text_pivots=2": lambda seen: reference.dart(seen, 0, 2),
    "fastv_norope:r=75%": lambda seen: (reference.best(reference.still(seen), seen.count), {}),
    "feather": lambda seen: reference.feather(seen, 3, 8, 64),
    "feather:first=1,second=4,f=0.1,stride=2": lambda seen: reference.feather(seen, 2, 8, 64),
    "fitprune": reference.fitprune,
    "sparsevlm": lambda seen: reference.sparsevlm(seen, False),
    "sparsevlm:64": lambda seen: reference.sparsevlm(seen, True),
    "sparsevlm:keep=60%/30%/5%,recycle=true": lambda seen: reference.sparsevlm(seen, True),
}


@pytest.mark.parametrize("rows", [("ttItttttt",), ("ttItttt", "tItIttttttt", "ttttt")])
@pytest.mark.parametrize("spec", CUTS)
def test_the_published_formula_and_what_comes_of_it(spec: str, rows: tuple[str, ...]) -> None:
    """Batches of unlike rows, each against its own slow walk."""
    model, inputs = tiny_llava(), prompts(*rows)
    with st3.trim(model, spec) as session:
        result = greedy(model, inputs, 4)
        cache = session.cache
        assert cache is not None
        assert cache.live_bytes == session.kv_bytes[-1]
    answers = result.sequences[:, inputs["input_ids"].shape[1] :].tolist()
    got, schedule = torch.stack(result.logits, 1), make_method(spec).schedule(10)
    features = model.model.get_image_features(
        pixel_values=inputs["pixel_values"], return_dict=True
    ).pooler_output
    first = 0
    for row, kinds in enumerate(rows):
        many = kinds.count("I")
        own = torch.cat([*features[first : first + many], torch.zeros(0, 64)])
        first += many
        ids = inputs["input_ids"][row][inputs["attention_mask"][row].bool()]
        counts = {
            n: schedule.count(n, 64 * many)
            for n in range(2, 11) if schedule.keeps[n - 1] != schedule.keeps[n - 2]
        }  # fmt: skip
        with torch.no_grad():
            want, kept = reference.walk(model, ids, own, answers[row], counts, CUTS[spec])
        places = (ids == model.config.image_token_id).nonzero().flatten().tolist()
        for layer in range(1, 11):
            assert [places[n] for n in session.kept(layer, row)] == kept[layer - 1], layer
        torch.testing.assert_close(got[row], want.float(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scorer", ["fastv_norope", "feather", "sparsevlm"])
def test_a_score_for_other_schedules(scorer: str) -> None:
    """Under annealing, too."""
    model, inputs = tiny_llava(), prompts("ttItttt", "tItIttttt")
    method = make_method("st3", scorer=scorer, tau=4)
    with st3.trim(model, method) as session:
        greedy(model, inputs, 6)
    for row in (0, 1):
        alive = [[{*session.kept(n, row, t)} for n in range(1, 11)] for t in range(5)]
        assert all(b <= a for a, b in pairwise(alive[0]))
        assert all(b <= a for n in range(10) for a, b in pairwise([kept[n] for kept in alive]))
        assert alive[0][9]
        assert not any(alive[4])


class NoWaiting(TorchDispatchMode):
    """Refuses what would make the host wait for a device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waits = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero")
        assert not any(name in str(func) for name in waits), func
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("spec", [*insiders(), "sparsevlm:recycle=true"])
def test_no_number_goes_to_the_host(monkeypatch: pytest.MonkeyPatch, spec: str) -> None:
    model, inputs = tiny_llava(layers=6), prompts("ttItttt", "tItIttttt")
    judge, judged = ByMethod.judge, []

    def watched(scorer: ByMethod, view: LayerView) -> Any:
        with NoWaiting():
            judged.append(judge(scorer, view))
        return judged[-1]

    monkeypatch.setattr(ByMethod, "judge", watched)
    monkeypatch.setattr(ByMethod, "score", lambda scorer, view: watched(scorer, view)[0])
    with st3.trim(model, spec):
        greedy(model, inputs, 1)
    assert judged


def test_what_a_layer_returned_cannot_order_what_anneals() -> None:
    with (
        pytest.raises(ValueError, match="decides by what a layer returns"),
        st3.trim(tiny_llava(), "st3:scorer=dart"),
    ):
        pass


@pytest.mark.parametrize("name", insiders())
def test_published_settings_are_settings(name: str) -> None:
    kind: Any = METHODS[name]
    for setting, parameters in kind.published.items():
        assert make_method(f"{name}:{setting}") == make_method(f"{name}:{parameters}")
    assert make_method(name).schedule(32).keeps[0] == 1


@pytest.mark.parametrize(
    ("spec", "counts", "mean"),
    [
        ("sparsevlm:192", (309, 204, 113), 192.0),
        ("sparsevlm:128", (312, 117, 39), 128.6),
        ("sparsevlm:64", (82, 32, 18), 64.8),
        ("sparsevlm:v2-192", (300, 200, 118), 192.4),
        ("sparsevlm", (300, 200, 110), None),
    ],
)
def test_sparsevlm_counts_as_its_authors(
    spec: str, counts: tuple[int, ...], mean: float | None
) -> None:
    """Their averages take the layers that decide for trimmed ones."""
    schedule = make_method(spec).schedule(32)
    found = [schedule.count(n, 576) for n in range(1, 33)]
    assert found == [576] * 3 + [counts[0]] * 4 + [counts[1]] * 9 + [counts[2]] * 16
    if mean is not None:
        assert (sum(found) - 576 + counts[2]) / 32 == pytest.approx(mean, abs=0.05)


def test_other_counts() -> None:
    assert [make_method(f"dart:{n}").schedule(32).count(3, 576) for n in (192, 128, 64)] == [
        192, 128, 64,
    ]  # fmt: skip
    feather = make_method("feather").schedule(32)
    assert [feather.count(n, 576) for n in (8, 9, 16, 17)] == [576, 218, 218, 20]
    assert feather.count(17, 576) == round(218 * 0.09)
    for alive in range(0, 80, 7):
        for count in range(alive + 1):
            kept, clusters, members = _parts(alive, count)
            assert kept + clusters == count
            assert clusters <= members <= alive - kept


def test_a_table_is_fitted_to_what_attention_loses() -> None:
    """Against loops over all counts; and one that is written is one that is read."""
    draw = torch.Generator().manual_seed(3)
    masses = [[(torch.rand(20, generator=draw) ** 3, torch.rand(20, generator=draw) ** 2)
               for _ in range(3)] for _ in range(6)]  # fmt: skip
    found = fitted_keeps(masses, 0.6)
    assert found[0] == 1
    assert sum(found) / 6 <= 0.6
    assert sum(found) / 6 > 0.55
    numbers = [[[(mass / mass.double().sum()).tolist() for mass in pair] for pair in of_layer]
               for of_layer in masses[:5]]  # fmt: skip
    fits = []
    for alpha in (n / 1000 for n in range(1001)):
        keeps = [1.0]
        for of_layer in numbers:
            gone = []
            for pair in of_layer:
                lists = []
                for mass in pair:
                    lost, leave = 0.0, set()
                    for n in sorted(range(20), key=mass.__getitem__):
                        lost += mass[n]
                        if lost <= alpha:
                            leave.add(n)
                    lists.append(leave)
                gone.append(len(lists[0] & lists[1]) / 20)
            keeps.append(min(keeps[-1], 1 - sum(gone) / 3))
        fits.append(keeps)
    first = next(keeps for keeps in fits if sum(keeps) / 6 <= 0.6)
    assert found == pytest.approx(first, abs=1e-6)
    with pytest.raises(ValueError, match="the first of 6 layers keeps all"):
        fitted_keeps(masses, 0.1)


def test_tables_of_fitprune(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"keeps": [1, 0.5, 0.25]}), encoding="utf-8")
    made = make_method("fitprune", table=str(path))
    assert made.schedule(6).keeps == (1, 1, 0.5, 0.5, 0.25, 0.25)
    assert made.schedule(2).keeps == (1, 0.5)
    for text in ("{", "[]", '{"keeps": []}', '{"keeps": ["x"]}'):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=r'table.json has no "keeps"'):
            made.schedule(6)
    with pytest.raises(ValueError, match=r"cannot read .*none.json"):
        make_method("fitprune:table=none.json").schedule(6)


def test_what_a_table_is_fitted_to() -> None:
    """Rows of attention, as eager attention has them."""
    model, inputs = tiny_llava(layers=3), prompts("ttItttt")
    found = masses_of(model, [inputs])
    model.model.language_model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = model(**inputs, output_attentions=True, use_cache=False).attentions
    visual = inputs["input_ids"][0] == model.config.image_token_id
    for (one,), matrix in zip(found, weights, strict=True):
        strongest = matrix[0].amax(0)[:, visual]
        torch.testing.assert_close(one[0], strongest[-4:].sum(0), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(one[1], strongest[visual].sum(0), atol=1e-5, rtol=1e-4)


def test_unlike_takes_what_is_wanted_and_no_token_twice() -> None:
    draw = torch.Generator().manual_seed(0)
    unit = torch.nn.functional.normalize(torch.randn(3, 12, 5, generator=draw), dim=-1)
    free = torch.rand(3, 12, generator=draw) > 0.2
    real = torch.tensor([[True] * 4, [True, True, False, False], [False] * 4])
    wanted = torch.tensor([7, 5, 0])
    order = unlike(unit, free, unit[:, :4], real, wanted)
    for row, many in enumerate(wanted.tolist()):
        taken = sorted(x for x in order[row].tolist() if x < 12)
        assert taken == list(range(many))
        assert bool(free[row][order[row] < 12].all())


def test_density_peaks_of_heaps() -> None:
    """Heaps far from each other are clusters, whatever order their tokens have."""
    draw = torch.Generator().manual_seed(1)
    heaps = torch.arange(12) % 3
    tokens = torch.eye(3)[heaps] * 9 + torch.randn(12, 3, generator=draw) / 9
    centres, cluster = clustered(tokens, 3)
    assert sorted(heaps[centres].tolist()) == [0, 1, 2]
    assert torch.equal(heaps[centres][cluster], heaps)
    assert cluster[centres].tolist() == [0, 1, 2]


def test_rows_of_attention_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weighted sums over all rows are those of the whole matrix, padding and rules or not."""
    monkeypatch.setattr("st3.methods.scorers.ROWS", 100)
    draw = torch.Generator().manual_seed(2)
    query, key = (torch.randn(2, heads, 9, 8, generator=draw) for heads in (4, 2))
    valid = torch.arange(9) >= torch.tensor([0, 3])[:, None]
    visual = torch.zeros(2, 9, dtype=torch.bool)
    weights = torch.rand(2, 7, generator=draw) * valid[:, 2:]
    rule = torch.ones(9, 9, dtype=torch.bool).tril()
    rule[3:6, 3:6] = True  # a picture that sees itself both ways
    for allowed in (None, rule):
        last = None if allowed is None else lambda rows: rule[-rows:].expand(2, 1, -1, -1)
        view = LayerView(query, key, 0.3, valid, visual, visual.long(), 0, 1, last)
        logits = query @ key.repeat_interleave(2, 1).transpose(2, 3) * 0.3
        seen = torch.ones(9, 9, dtype=torch.bool).tril() if allowed is None else allowed
        hidden = ~seen | ~valid[:, None, None]
        matrix = logits.masked_fill(hidden, torch.finfo(torch.float32).min).softmax(-1)[:, :, 2:]
        mean = (matrix.mean(1) * weights[..., None]).sum(1)
        most = (matrix.amax(1) * weights[..., None]).sum(1)
        torch.testing.assert_close(view.received(weights), mean)
        torch.testing.assert_close(view.received(weights, "max"), most)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("dart:k=0", r"dart: K must lie in 1\.\.11 for 12 layers, got 0"),
        ("dart:keep=2", "what stays must lie between 0 and 1, got 2"),
        ("dart:pivots=0,text_pivots=0", "at least one pivot"),
        ("fastv_norope:r=2", "between 0 and 1"),
        ("feather:stride=0", "stride must be at least 1"),
        ("feather:f=2", "f must lie between 0 and 1"),
        ("feather:first=6,second=6", "1 <= first < second < 12, got 6 and 6"),
        ("sparsevlm:keep=100", "keep must be one of 192, 128, 96, 64, v2-192"),
        ("sparsevlm:keep=10%/20%/30%", "three falling shares"),
        ("sparsevlm:recycle=maybe", "recycle must be one of true, false, yes, no, got 'maybe'"),
    ],
)
def test_settings_that_cannot_be(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_method(spec).schedule(12)
