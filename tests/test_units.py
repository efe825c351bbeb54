"""Figures that people read."""

from __future__ import annotations

import pytest

from st3.tables import digits, or_dash, spread
from st3.units import duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.1, "1 s"), (42.4, "42 s"), (99.6, "2 min"), (240, "4 min"), (5400, "90 min"),
     (6000, "1.7 h"), (86400, "24 h")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_one_run_has_no_spread() -> None:
    assert spread([5.0]) is spread([]) is None
    assert spread([4.0, 5.0, 6.0]) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.012346, "0.01235"), (9999.4, "9999"), (9999.7, "10000"), (24680, "24680")],
)
def test_no_figure_of_a_table_has_an_exponent(value: float, text: str) -> None:
    assert digits(value) == text
    assert or_dash("x")({"x": value}) == text


def test_three_digits() -> None:
    assert [digits(value, 3) for value in (0.01234, 999.4, 999.6)] == ["0.0123", "999", "1000"]
