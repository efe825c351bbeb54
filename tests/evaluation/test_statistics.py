"""Intervals and paired tests against slow, independent computations."""

from __future__ import annotations

import numpy as np
import pytest

from st3.evaluation.statistics import paired, score_interval
from st3.proportion import difference_interval, interval, mcnemar


def test_shares_have_wilsons_interval() -> None:
    assert score_interval([1, 0, 1, 1]) == interval(3, 4)


def test_other_scores_are_bootstrapped() -> None:
    draw = np.random.default_rng(1)
    values = draw.normal(2.0, 1.0, 400)
    low, high = score_interval(list(values))
    half = 1.96 * values.std() / len(values) ** 0.5
    assert low == pytest.approx(values.mean() - half, abs=0.02)
    assert high == pytest.approx(values.mean() + half, abs=0.02)
    assert score_interval(list(values)) == (low, high)


def test_pairs() -> None:
    found = paired([1, 1, 0, 1], [1, 0, 1, 0])
    assert (found.difference, found.gained, found.lost) == (0.25, 2, 1)
    assert found.test == "McNemar"
    assert found.p == mcnemar(2, 1)
    assert (found.low, found.high) == difference_interval(1, 2, 1, 0)
    alike = paired([1] * 10 + [0] * 2, [1] * 10 + [0] * 2)
    assert alike.low < -0.1 < 0.1 < alike.high  # twelve documents are no proof of sameness
    same = paired([0.5, 0.25], [0.5, 0.25])
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)
    assert same.test == "bootstrap"


def test_pairs_see_what_intervals_do_not() -> None:
    """Documents differ more from each other than the methods do."""
    draw = np.random.default_rng(2)
    base = draw.normal(1.0, 0.5, 300)
    better = base + draw.normal(0.02, 0.05, 300)
    found = paired(list(better), list(base))
    assert found.low > 0
    assert found.p < 0.01
    assert score_interval(list(better))[0] < base.mean()


def test_few_draws_are_no_certainty() -> None:
    """All of three documents are better, as chance has it in one of four times three."""
    assert 0 < paired([0.5, 0.6, 0.7], [0.1, 0.2, 0.3]).p == pytest.approx(2 / 2001)


def test_unpaired() -> None:
    with pytest.raises(ValueError, match="3 documents cannot be paired with 2"):
        paired([1, 1, 0], [1, 0])
