"""A grid of tokens divided into fewer cells, about alike: what a smaller picture would have.

Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import isqrt


@dataclass(frozen=True)
class Cells:
    """A picture's tokens, line by line, in cells.

    Attributes:
        centre: numbers of the tokens in the middle of each, line by line.
        cell: of each token, the number of its cell.
    """

    centre: tuple[int, ...]
    cell: tuple[int, ...]


@lru_cache(maxsize=64)
def divided(high: int, wide: int, count: int) -> Cells:
    """At most `count` cells of a grid, as square as that allows, each with one token or more."""
    shapes = [(a, min(wide, count // a)) for a in range(1, min(high, count) + 1)]
    lines, columns = max(shapes, key=lambda s: (min(s[0] / high, s[1] / wide), s[0] * s[1]))
    row, column = _parts(high, lines), _parts(wide, columns)
    centre = tuple(y * wide + x for y in _middles(row) for x in _middles(column))
    cell = tuple(a * columns + b for a in row for b in column)
    return Cells(centre, cell)


def square(size: int) -> tuple[int, int] | None:
    """Lines and columns of so many tokens, if they can be a square."""
    side = isqrt(size)
    return (side, side) if side * side == size else None


def _parts(length: int, parts: int) -> list[int]:
    """Of so many numbers in a row, which part each is in."""
    return [n * parts // length for n in range(length)]


def _middles(part: list[int]) -> list[int]:
    inside: dict[int, list[int]] = {}
    for number, which in enumerate(part):
        inside.setdefault(which, []).append(number)
    return [these[(len(these) - 1) // 2] for these in inside.values()]


@lru_cache(maxsize=64)
def filled(size: int, cells: Cells, count: int) -> tuple[int, ...]:
    """`count` tokens: the centres, and behind them others, both so that any prefix is spread."""
    taken = {*cells.centre}
    centres = [cells.centre[n] for n in sorted(range(len(cells.centre)), key=spread)]
    others = sorted((n for n in range(size) if n not in taken), key=spread)
    return (*centres, *others)[:count]


def spread(number: int) -> float:
    """Where a number lies in an order whose every prefix is spread evenly: in 0..1."""
    return number * 0.618034 % 1
