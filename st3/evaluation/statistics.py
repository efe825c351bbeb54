"""How sure a score is, and whether two methods differ on the documents that both answered.

Everything is computed from one figure a document, in the same order for all methods. Shares of
right answers get Wilson's interval and McNemar's exact test; others the bootstrap over documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from st3.proportion import interval, mcnemar

_DRAWS = 2_000
_SEED = 0


@dataclass(frozen=True)
class Paired:
    """One method's score less another's, over the same documents.

    Attributes:
        difference: of the means.
        low, high: its 95 % interval, bootstrapped over documents.
        p: two-sided, of no difference: McNemar's exact test where figures are 0 or 1, and else
            from the bootstrap. `test`: which of both.
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
    means = _means(each)
    low, high = np.quantile(means, (0.025, 0.975))
    if _shares(values) and _shares(others):
        test, p = "McNemar", mcnemar(gained, lost)
    else:
        below = float((means <= 0).mean())
        above = float((means >= 0).mean())
        test, p = "bootstrap", min(1.0, 2 * min(below, above))
    return Paired(float(each.mean()), float(low), float(high), p, test, gained, lost)


def _shares(values: Sequence[float]) -> bool:
    return all(value in (0, 1) for value in values)


def _means(values: np.ndarray) -> np.ndarray:
    """Means of as many documents, drawn with replacement, of each of many draws."""
    draw = np.random.default_rng(_SEED)
    count = len(values)
    return np.array([values[draw.integers(0, count, count)].mean() for _ in range(_DRAWS)])
