"""Schedules: the paper's figures, equation 9, and what must never happen."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from st3.methods import METHODS, make_method
from st3.methods.inside import insiders
from st3.methods.pvtp import final_keep, pvtp_keeps, ratio_for, strides_below
from st3.methods.schedule import ANNEALINGS, Schedule

layers = st.integers(4, 60)
strides = st.integers(1, 12)
shares = st.integers(0, 100).map(lambda n: n / 100)


def macs(depth: int, d: int, m: int, keeps: tuple[float, ...]) -> int:
    """4nd^2 + 2n^2d + 3ndm, summed over layers; 576 visual and 64 text tokens."""
    total = 0
    for keep in keeps:
        n = 64 + round(keep * 576)
        total += 4 * n * d * d + 2 * n * n * d + 3 * n * d * m
    return total


@pytest.mark.parametrize(
    ("depth", "width", "mlp", "untrimmed", "trimmed", "mean", "kv"),
    [
        (32, 4096, 11008, 4.2520e12, 1.6775e12, 0.3325, 0.399),
        (40, 5120, 13824, 8.2879e12, 3.2943e12, 0.3350, 0.402),
    ],
)
def test_published_settings(
    depth: int, width: int, mlp: int, untrimmed: float, trimmed: float, mean: float, kv: float
) -> None:
    schedule = make_method("st3").schedule(depth)
    assert macs(depth, width, mlp, (1.0,) * depth) == pytest.approx(untrimmed, rel=2e-5)
    assert macs(depth, width, mlp, schedule.keeps) == pytest.approx(trimmed, rel=3e-5)
    assert schedule.mean_keep == pytest.approx(mean, abs=1e-6)
    alive = sum(64 + schedule.count(n, 576) for n in range(1, depth + 1))
    assert alive / (640 * depth) == pytest.approx(kv, abs=6e-4)  # 40.2 % is 40.15 % rounded
    settings = make_method("st3").settings(depth)
    assert settings["stride"] == 4
    assert settings["ratio"] == pytest.approx({32: 0.07, 40: 0.05}[depth])
    assert settings["final_keep"] == pytest.approx({32: 0.01, 40: 0.05}[depth])


def test_groups_of_7b() -> None:
    groups = make_method("st3").schedule(32).groups()
    assert [(g.first, g.last) for g in groups] == [
        (1, 3), (4, 6), (7, 10), (11, 14), (15, 18), (19, 22), (23, 26), (27, 30), (31, 32)
    ]  # fmt: skip
    assert [g.scored_in for g in groups] == [3, 3, 6, 10, 14, 18, 22, 26, 30]


@given(layers, strides, shares, shares)
@example(depth=4, stride=1, prune=0.07, final=0.93)
def test_equation_9_both_ways(depth: int, stride: int, prune: float, final: float) -> None:
    strides_taken = math.floor(Fraction(depth - 3, stride))
    if prune + final > 1 or strides_taken == 0:
        return
    ratio = ratio_for(depth, prune, stride, final)
    assert final_keep(depth, prune, ratio, stride) == pytest.approx(final, abs=1e-9)
    assert pvtp_keeps(depth, prune, ratio, stride)[-1] == pytest.approx(final, abs=1e-9)
    exact = 1 - Fraction(prune) - strides_taken * Fraction(ratio)
    assert float(exact) == pytest.approx(final, abs=1e-9)


@given(layers, strides, shares, shares, st.integers(0, 3000), st.integers(1, 300),
       st.sampled_from(list(ANNEALINGS)))  # fmt: skip
def test_counts_never_rise(
    depth: int, stride: int, prune: float, ratio: float, visual: int, tau: int, form: str
) -> None:
    if final_keep(depth, prune, ratio, stride) < 0:
        with pytest.raises(ValueError, match="largest R"):
            pvtp_keeps(depth, prune, ratio, stride)
        return
    schedule = Schedule(pvtp_keeps(depth, prune, ratio, stride), tau, form)
    times = sorted({0, 1, tau // 2, tau - 1, tau, tau + 1, 10 * tau})
    table = [
        [schedule.count(n, visual, t) for t in times] for n in (1, 3, 4, depth // 2 + 2, depth)
    ]
    for row in table:
        assert row == sorted(row, reverse=True)
    for column in zip(*table, strict=True):
        assert list(column) == sorted(column, reverse=True)
    assert schedule.count(1, visual) == visual
    if form != "none":
        assert schedule.count(1, visual, tau) == 0


@given(layers, strides, shares, st.integers(1, 100).map(lambda n: n / 100))
def test_a_refusal_names_values_that_fit(
    depth: int, stride: int, prune: float, ratio: float
) -> None:
    if final_keep(depth, prune, ratio, stride) >= 0:
        return
    with pytest.raises(ValueError, match="largest R") as caught:
        pvtp_keeps(depth, prune, ratio, stride)
    text = str(caught.value)
    largest = float(text.split("for this S is ")[1].split(",")[0])
    assert pvtp_keeps(depth, prune, largest, stride)[-1] >= 0
    smallest = int(text.split("for this R is ")[1])
    if strides_below(depth, smallest) == 0 or prune + ratio <= 1:
        assert final_keep(depth, prune, ratio, smallest) >= 0
    assert final_keep(depth, prune, ratio, smallest - 1) < 0


@pytest.mark.parametrize(
    ("form", "half"),
    [("cosine", 0.5), ("quarter-cosine", 0.5**0.5), ("linear", 0.5), ("step", 1.0)],
)
def test_annealing_forms(form: str, half: float) -> None:
    schedule = Schedule((1.0,) * 8, 100, form)
    assert schedule.share(0) == 1
    assert schedule.share(50) == pytest.approx(half)
    assert schedule.share(100) == 0
    assert schedule.share(10_000) == 0


def test_rounding_is_the_exact_share_s() -> None:
    # 1 - 0.5 - 9 * 0.05 is 0.0499... in floating point; 5 % of 30 is exactly 1.5.
    schedule = make_method("pvtp", ratio=0.05, stride=4).schedule(40)
    assert schedule.count(40, 30) == 2


@pytest.mark.parametrize(
    ("parameters", "part"),
    [
        ({"ratio": 0.08}, "largest R for this S is 0.0714"),
        ({"ratio": 0.08}, "smallest S for this R is 5"),
        ({"prune_ratio": 1.5}, "between 0 and 1"),
        ({"ratio": float("nan")}, "between 0 and 1"),
        ({"stride": 0}, "at least 1"),
        ({"stride": 2.5}, "whole number"),
        ({"final_keep": 0.6}, "lower P to 0.4"),
        ({"stride": 30}, "largest S that prunes again is 29"),
        ({"ratio": 0.05, "final_keep": 0.1}, "not both"),
        ({"tau": 0}, "tau must be at least 1"),
        ({"annealing": "sine"}, "known: cosine"),
        ({"scorer": "best"}, "known: last-token"),
        ({"keep": 1}, "it has: scorer, kv_cache_dtype, prune_ratio"),
    ],
)
def test_bad_parameters(parameters: dict[str, object], part: str) -> None:
    if parameters.get("stride") == 30:
        parameters = parameters | {"final_keep": 0.01}
    with pytest.raises(ValueError, match=part.replace("(", r"\(")):
        make_method("st3", **parameters).schedule(32)


def test_unknown_method() -> None:
    with pytest.raises(ValueError, match="known: none, pvtp, vta, st3"):
        make_method("fastest")


@pytest.mark.parametrize("depth", range(1, 60))
@pytest.mark.parametrize("name", METHODS)
def test_defaults_fit_every_depth(name: str, depth: int) -> None:
    peers_that_need_four = {"fastv", "vtw", "pyramiddrop", *insiders()}
    depth = max(depth, 4) if name in peers_that_need_four else depth
    assert make_method(name).schedule(depth).layers == depth


def test_layer_1_keeps_all() -> None:
    with pytest.raises(ValueError, match="layer 1 must keep all"):
        Schedule((0.5, 0.5))


@pytest.mark.parametrize("keeps", [(), (1.0, 1.2), (1.0, 0.5, 0.7), (1.0, -0.1), (float("nan"),)])
def test_impossible_schedules(keeps: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="keep ratios"):
        Schedule(keeps)
