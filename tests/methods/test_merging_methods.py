"""Methods that merge, against dense matrices made by plain loops; and how many an IQR lets in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from methods import merged_references as references
from methods.test_before_methods import view_of

from st3.methods import make_method
from st3.methods.selecting import Merge

SPECS = [
    "visionzip:keep=50%", "visionzip:keep=7,contextual=0.5", "visionzip:keep=5,contextual=1",
    "visionzip:keep=5,contextual=0", "visionzip:keep=100",
    "prumerge", "prumerge:keep=6,neighbours=3", "prumerge:keep=1", "prumerge:keep=100",
    "prumerge:keep=40%,neighbours=0", "prumerge_plus", "prumerge_plus:keep=7,neighbours=4",
    "prumerge_plus:keep=1", "prumerge_plus:keep=100",
    "tome:keep=60%", "tome:keep=3", "tome:keep=1", "tome:keep=100",
    "aim:keep=25%", "aim:keep=50%", "aim:keep=3",
    "vscan:keep=50%", "vscan:keep=3,local=1", "vscan:keep=40%,local=0", "vscan:keep=100",
]  # fmt: skip
GRIDS = {16: (4, 4), 12: (3, 4), 9: (3, 3)}


def dense(merge: Merge, pool: int, size: int) -> torch.Tensor:
    """The matrix of a pool, [size, size]; a token that nothing is merged into is itself."""
    W, named = torch.zeros(size, size, dtype=torch.float64), set()
    for i, j, w in zip(
        *(x[pool].tolist() for x in (merge.into, merge.of, merge.weight)), strict=True
    ):
        if w:
            W[i, j] += w
            named.add(i)
    for i in range(size):
        if i not in named:
            W[i, i] = 1.0
    return W


def reference(method: Any, view: Any, tower: Any, pool: int) -> references.Found:
    """Of one pool."""
    size, count = view.sizes[pool], view.counts[pool]
    V = view.features[pool, :size]

    def drawn(name: str) -> list[float]:
        found: list[float] = tower._drawn(name)[pool, :size].tolist()
        return found

    if method.name == "visionzip":
        keys = tower.keys("features")[pool, :size].mean(1)
        return references.visionzip(keys, drawn("attention features"), method.contextual, count)
    if method.name.startswith("prumerge"):
        keys = tower.keys("last")[pool, :size].flatten(1)
        wanted = None if method.keep == "adaptive" else count
        plus = method.name == "prumerge_plus"
        if size == 1:  # no quartiles
            return [0], [[1.0]]
        return references.prumerge(keys, drawn("joint last"), method.neighbours, wanted, plus)
    if method.name == "vscan":
        near, wide = (drawn(f"attention {x}") for x in ("0.25", "features"))
        return references.vscan(V, near, wide, GRIDS.get(size, (1, size)), method.local, count)
    frame = view.frame[pool, :size].tolist() if method.name == "aim" else None
    return references.paired(V, count, method.name == "tome", frame)


@pytest.mark.parametrize("spec", SPECS)
def test_the_published_merging(spec: str) -> None:
    """In pools of several sizes at once, one of them of one token: who stays, and its new value."""
    method: Any = make_method(spec)
    view, tower = view_of(method)
    chosen = method.choose(view)
    for pool, size in enumerate(view.sizes):
        stays, W = reference(method, view, tower, pool)
        count = view.counts[pool] if chosen.counts is None else chosen.counts[pool]
        got = chosen.picks[pool, :count].tolist()
        assert sorted(got) == sorted(stays)
        mine, want = dense(chosen.merge, pool, size), torch.tensor(W, dtype=torch.float64)
        torch.testing.assert_close(mine[got], want[got], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("spec", "sums"),
    [("tome", {1.0}), ("aim", {1.0}), ("vscan", {1.0}), ("visionzip:contextual=0.3", {1.0, 2.0})],
)
def test_rows_of_the_matrix_sum_to_one_where_they_are_means(spec: str, sums: set[float]) -> None:
    """Of VisionZip's contextual tokens to two: a token, and the mean of what came to it."""
    method: Any = make_method(spec, keep=0.4)
    view, _ = view_of(method)
    chosen = method.choose(view)
    found = set()
    for pool, size in enumerate(view.sizes):
        stays = chosen.picks[pool, : view.counts[pool]]
        found |= {round(float(x), 5) for x in dense(chosen.merge, pool, size)[stays].sum(1)}
    assert found == sums


def test_visionzip_without_contextual_tokens_is_fastervlm() -> None:
    one, other = make_method("visionzip:keep=6,contextual=0"), make_method("fastervlm:keep=6")
    found: list[Any] = [x.choose(view_of(x)[0]).picks[0, :6].tolist() for x in (one, other)]  # type: ignore[attr-defined]
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["prumerge", "prumerge_plus"])
def test_how_many_stay_is_decided_by_what_stands_out(name: str) -> None:
    """Three of a hundred that stand out, one that does not, and none: one token, never none."""
    method: Any = make_method(name)
    view, tower = view_of(method, (100, 100, 100))
    even = torch.rand(3, 100, generator=torch.Generator().manual_seed(3)) * 0.1 + 1
    even[0, [7, 40, 81]] = 30.0
    even[1, 5] = 20.0
    even[2] = 1.0
    tower.joint = lambda layer: even / 100
    chosen = method.choose(view)
    if name == "prumerge":
        assert chosen.counts == (4, 2, 2)
        assert sorted(chosen.picks[0, :3].tolist()) == [7, 40, 81]
    else:  # steps of 33 // 3 and 100 // 3
        grids = [{*range(0, 100, 11)} | {7, 40, 81}, {*range(0, 100, 33)} | {5}]
        assert [{*chosen.picks[n, : len(grid)].tolist()} for n, grid in enumerate(grids)] == grids
        assert chosen.counts[:2] == tuple(len(grid) + 1 for grid in grids)


def test_marks_at_ends_of_lines_stay_as_they_are() -> None:
    """They stand for no patch: nothing is merged into them, and they come first."""
    for name in ("visionzip", "prumerge", "prumerge_plus", "vscan"):
        method: Any = make_method(name, keep=8)
        view, tower = view_of(method, (20,))
        marks = torch.zeros(1, 20, dtype=torch.bool)
        marks[0, [9, 19]] = True
        drawn = tower._drawn

        def with_marks(layer: str, drawn: Any = drawn, marks: Any = marks) -> torch.Tensor:
            return drawn(layer).masked_fill(marks, float("inf"))

        tower._drawn = with_marks
        chosen = method.choose(view)
        assert {9, 19} <= {*chosen.picks[0, :8].tolist()}, name
        W = dense(chosen.merge, 0, 20)
        assert W.isfinite().all()
        for mark in (9, 19):
            assert W[mark].tolist() == references.identity(20)[mark], name


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("divprune:keep=adaptive", "keep must be a share"),
        ("visionzip:contextual=2", "contextual must be a share, got 2"),
        ("prumerge:neighbours=-1", "prumerge: neighbours must not be negative, got -1"),
        ("vscan:second=2", "second must be a share, got 2"),
        ("vscan:middle=nan", "middle must be a share, got nan"),
    ],
)
def test_settings_that_cannot_be_merged_by(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_method(spec)


def test_an_adaptive_budget_says_so() -> None:
    method = make_method("prumerge")
    assert method.schedule(4).entering.adaptive
    assert method.settings(4)["keep"] == "adaptive"
    assert not make_method("prumerge:keep=64").schedule(4).entering.adaptive
    assert make_method("prumerge:keep=64").settings(4)["keep"] == 64


def test_vscan_is_sixty_four_tokens_a_layer_on_average() -> None:
    schedule = make_method("vscan:64").schedule(32)
    counts = [schedule.count(layer, 576) for layer in range(1, 33)]
    assert counts == [96] * 16 + [32] * 16
