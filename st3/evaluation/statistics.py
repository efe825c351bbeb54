"""How sure a score is, and whether two methods differ on the documents that both answered.

Everything is computed from one figure a document, in the same order for all methods. Shares of
right answers get Wilson's interval, and their differences Newcombe's and McNemar's exact test;
other figures the bootstrap over documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from st3.proportion import difference_interval, interval, mcnemar

_DRAWS = 2_000
_SEED = 0


@dataclass(frozen=True)
class Paired:
    """One method's score less another's, over the same documents.

    Attributes:
        difference: of the means.
        low, high: its 95 % interval: Newcombe's where figures are 0 or 1, and else bootstrapped
            over documents.
        p: two-sided, of no difference: McNemar's exact test where figures are 0 or 1, and else
            from the bootstrap, the documents as they are counted as one of its draws (Davison and
            Hinkley, 1997, 4.2). `test`: which of both.
        gained, lost: documents that are better and worse than with the other.
    """

    difference: float
    low: float
    high: float
    p: float
    test: str
    gained: int
    lost: int


def score_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean of figures a document."""
    if _shares(values):
        return interval(round(sum(values)), len(values))
    low, high = np.quantile(_means(np.asarray(values, dtype=float)), (0.025, 0.975))
    return float(low), float(high)


def paired(values: Sequence[float], others: Sequence[float]) -> Paired:
    """Compare two methods, document by document.

    Raises:
        ValueError: not as many documents.
    """
    if len(values) != len(others):
        raise ValueError(f"{len(values)} documents cannot be paired with {len(others)}")
    each = np.asarray(values, dtype=float) - np.asarray(others, dtype=float)
    gained, lost = int((each > 0).sum()), int((each < 0).sum())
    if _shares(values) and _shares(others):
        both = sum(one == other == 1 for one, other in zip(values, others, strict=True))
        neither = len(each) - both - gained - lost
        low, high = difference_interval(both, gained, lost, neither)
        test, p = "McNemar", mcnemar(gained, lost)
    else:
        means = _means(each)
        low, high = np.quantile(means, (0.025, 0.975))
        fewer = min((means <= 0).sum(), (means >= 0).sum())
        test, p = "bootstrap", min(1.0, 2 * (1 + int(fewer)) / (1 + _DRAWS))
    return Paired(float(each.mean()), float(low), float(high), p, test, gained, lost)


def _shares(values: Sequence[float]) -> bool:
    return all(value in (0, 1) for value in values)


def _means(values: np.ndarray) -> np.ndarray:
    """Means of as many documents, drawn with replacement, of each of many draws."""
    draw = np.random.default_rng(_SEED)
    count = len(values)
    return np.array([values[draw.integers(0, count, count)].mean() for _ in range(_DRAWS)])
