"""How sure a share is, and a difference of two shares of the same things."""

from __future__ import annotations

import math

_Z = 1.959964  # of 95 %


def interval(right: int, asked: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (Wilson, 1927)."""
    share, spread = right / asked, _Z**2 / asked
    centre = share + spread / 2
    half = _Z * (share * (1 - share) / asked + spread / (4 * asked)) ** 0.5
    return max(0.0, (centre - half) / (1 + spread)), min(1.0, (centre + half) / (1 + spread))


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p of McNemar's exact test: a coin that falls so unevenly, or more (McNemar, 1947).

    Args:
        gained, lost: things on which only one, or only the other, is right.
    """
    tosses = gained + lost
    tail = sum(math.comb(tosses, heads) for heads in range(min(gained, lost) + 1))
    return float(min(1, 2 * tail / 2**tosses))  # whole numbers: no overflow before the division


def difference_interval(both: int, gained: int, lost: int, neither: int) -> tuple[float, float]:
    """The 95 % interval of a share less another of the same things.

    Newcombe, *Improved confidence intervals for the difference between binomial proportions based
    on paired data*, Statistics in Medicine 1998, method 10: of the shares' Wilson intervals, by how
    they go together. Unlike a bootstrap it has a width where nothing differs.

    Args:
        both, neither: things on which both are right, or neither. `gained`, `lost`: only the
            first, or only the second.
    """
    asked = both + gained + lost + neither
    one, other = both + gained, both + lost
    (low, high), (its_low, its_high) = interval(one, asked), interval(other, asked)
    below, above = one / asked - low, high - one / asked
    its_below, its_above = other / asked - its_low, its_high - other / asked
    together: float = both * neither - gained * lost
    if together > 0:
        together = max(together - asked / 2, 0)
    margins = one * (asked - one) * other * (asked - other)
    phi = together / margins**0.5 if margins else 0.0
    difference = (gained - lost) / asked
    down = (below**2 - 2 * phi * below * its_above + its_above**2) ** 0.5
    up = (above**2 - 2 * phi * above * its_below + its_below**2) ** 0.5
    return max(-1.0, difference - down), min(1.0, difference + up)
