"""Intervals and exact tests of shares, against slow, independent computations."""

from __future__ import annotations

import itertools
import math

import pytest

from st3.proportion import difference_interval, mcnemar


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (2, 5), (6, 6), (0, 9)])
def test_mcnemar_counts_all_tosses(gained: int, lost: int) -> None:
    """The oracle tosses the coin in all ways: as uneven or more so, to either side."""
    tosses = list(itertools.product((0, 1), repeat=gained + lost))
    far = abs(gained - lost)
    uneven = sum(abs(2 * sum(toss) - len(toss)) >= far for toss in tosses)
    assert mcnemar(gained, lost) == pytest.approx(uneven / len(tosses))


def test_mcnemar_of_many_documents() -> None:
    assert mcnemar(3000, 3000) == 1.0
    assert 0 < mcnemar(2900, 3100) < 0.02
    assert mcnemar(2900, 3100) == mcnemar(3100, 2900)


@pytest.mark.parametrize(
    "chances", [(0.6, 0.1, 0.2, 0.1), (0.7, 0.15, 0.15, 0.0), (0.9, 0.0, 0.1, 0.0)]
)
def test_the_interval_of_a_difference_covers_it(chances: tuple[float, ...]) -> None:
    """Over all tables of 30 things, each as likely as it is: in about 95 of 100 it is inside."""
    things, truth, covered = 30, chances[1] - chances[2], 0.0
    for both, gained, lost in itertools.product(range(things + 1), repeat=3):
        table = (both, gained, lost, things - both - gained - lost)
        if table[3] < 0:
            continue
        ways = math.factorial(things)
        for count in table:
            ways //= math.factorial(count)
        likely = ways * math.prod(p**n for p, n in zip(chances, table, strict=True))
        low, high = difference_interval(*table)
        covered += likely * (low <= truth <= high)
    assert 0.93 < covered <= 1


def test_the_interval_of_a_difference_by_its_own_formula() -> None:
    """Written anew, from the roots of Wilson's equation, for one table."""
    both, gained, lost, neither = 50, 12, 3, 15
    asked, z2 = 80, 1.959964**2

    def roots(share: float) -> tuple[float, float]:
        a, b, c = 1 + z2 / asked, -2 * share - z2 / asked, share**2
        apart = math.sqrt(b * b - 4 * a * c)
        return (-b - apart) / (2 * a), (-b + apart) / (2 * a)

    one, other = 62 / 80, 53 / 80
    (l1, u1), (l2, u2) = roots(one), roots(other)
    phi = (50 * 15 - 12 * 3 - 40) / math.sqrt(62 * 18 * 53 * 27)
    low = one - other - math.sqrt((one - l1) ** 2 + (u2 - other) ** 2
                                  - 2 * phi * (one - l1) * (u2 - other))  # fmt: skip
    high = one - other + math.sqrt((u1 - one) ** 2 + (other - l2) ** 2
                                   - 2 * phi * (u1 - one) * (other - l2))  # fmt: skip
    assert difference_interval(both, gained, lost, neither) == pytest.approx((low, high))


def test_what_is_alike_differs_by_nothing_within_something() -> None:
    low, high = difference_interval(20, 0, 0, 0)
    assert low == pytest.approx(-high)
    assert 0 < high < 0.3
    assert difference_interval(3, 2, 1, 4) == pytest.approx(
        tuple(-x for x in reversed(difference_interval(3, 1, 2, 4)))
    )
