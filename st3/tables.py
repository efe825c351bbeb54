"""Tables of figures, from rows that were measured or saved: titles, heads, cells as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from st3.units import si

NOT_MEASURED = "not measured"
Cell = Callable[[dict[str, Any]], str]


@dataclass(frozen=True)
class Table:
    """A title, column heads and cells; the first column is text, the others are figures."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """As Markdown."""
        lines = [self.heads, ("---", *("---:" for _ in self.heads[1:])), *self.rows]
        return f"**{self.title}**\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def spread(times: Sequence[float]) -> float | None:
    """(Largest - smallest) / median of the rounds; None of fewer than two: one has no spread."""
    if len(times) < 2:
        return None
    return (max(times) - min(times)) / median(times)


def digits(value: float, most: int = 4) -> str:
    """So many of them, or all before the point: no exponent of a large figure."""
    return f"{value:.{most}g}" if abs(value) < 10**most - 0.5 else f"{value:.0f}"


def table(title: str, rows: Sequence[dict[str, Any]], columns: dict[str, Cell]) -> Table:
    """Rows as a table; columns that only a GPU fills are left out where none did."""
    for head, key in _ON_A_GPU.items():
        if all(row.get(key) is None for row in rows):
            columns = {name: cell for name, cell in columns.items() if name != head}
    return Table(
        title,
        ("method", *(head.strip() for head in columns)),
        tuple((row["method"], *(cell(row) for cell in columns.values())) for row in rows),
    )


def figure(key: str, show: Callable[[Any], str]) -> Cell:
    """A cell that shows a figure, or says that it was not measured."""
    return lambda row: NOT_MEASURED if row[key] is None else show(row[key])


def count(key: str, unit: str = "") -> Cell:
    """Four digits with a prefix and a unit."""
    return figure(key, lambda value: si(value, unit))


def share(key: str) -> Cell:
    """Percent."""
    return lambda row: "-" if row[key] is None else f"{row[key]:.1%}"


def milliseconds(key: str) -> Cell:
    """Four digits; a dash where there is nothing to measure."""

    def cell(row: dict[str, Any]) -> str:
        value = row[key]
        if value is None:  # one token has no step: there is nothing to measure
            return NOT_MEASURED if row["ttft_ms"] is None else "-"
        return digits(value)

    return cell


def or_dash(key: str) -> Cell:
    """Four digits, or a dash."""
    return lambda row: "-" if row.get(key) is None else digits(row[key])


def times(key: str) -> Cell:
    """A factor."""
    return figure(key, lambda value: f"{value:.2f}x")


_ON_A_GPU = {
    "recording, ms": "recording_ms",
    "first, ms": "first_e2e_ms",
    "peak memory": "peak_memory_bytes",
    "compiling, s": "compiling_s",
}
