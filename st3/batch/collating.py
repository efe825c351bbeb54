"""Prepared rows become one batch; which of them can, and which should, because they are as long.

A processor makes a batch of several prompts by padding their words on the left and putting what
they show one behind the other. So does this, with what it made of each alone: the costly part is
done by then. Rows whose pictures became arrays of other shapes do not meet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from st3.batch.preparing import Prepared

Inputs = dict[str, Any]


def is_word(value: Any, ids: np.ndarray) -> bool:
    """Whether an array says something of each token of a prompt."""
    plain = isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.integer)
    return plain and value.shape == ids.shape


def signature(inputs: Mapping[str, Any]) -> tuple[Any, ...]:
    """What must be the same in all rows of a batch."""
    ids = inputs["input_ids"]
    found: list[tuple[Any, ...]] = []
    for key, value in sorted(inputs.items()):
        if is_word(value, ids):
            found.append((key,))
        elif isinstance(value, np.ndarray):
            found.append((key, value.dtype.str, value.shape[1:]))
        elif isinstance(value, list):
            found.append((key, "list"))
        else:  # what nobody knows to put together meets nothing else
            plain = value is None or isinstance(value, (str, int, float))
            found.append((key, value if plain else id(value)))
    return tuple(found)


def collated(rows: Sequence[Mapping[str, Any]], pad: int) -> Inputs:
    """One batch of rows of one signature, as tensors.

    Args:
        rows: inputs of each alone.
        pad: id of the token that fills rows up, on the left.
    """
    width = max(row["input_ids"].shape[1] for row in rows)
    made: Inputs = {}
    for key, first in rows[0].items():
        values = [row[key] for row in rows]
        if is_word(first, rows[0]["input_ids"]):
            fill = pad if key == "input_ids" else 0
            padded = [
                np.pad(value, ((0, 0), (width - value.shape[1], 0)), constant_values=fill)
                for value in values
            ]
            made[key] = torch.from_numpy(np.concatenate(padded))
        elif isinstance(first, np.ndarray):
            made[key] = torch.from_numpy(np.concatenate(values))
        elif isinstance(first, list):
            made[key] = [each for value in values for each in value]
        else:
            made[key] = first
    return made


def grouped(rows: Sequence[Prepared], size: int) -> list[list[Prepared]]:
    """Batches of at most so many rows, in the order given: for whoever knows a better one."""
    kinds: dict[tuple[Any, ...], list[Prepared]] = {}
    for row in rows:
        kinds.setdefault(signature(row.inputs), []).append(row)
    return [
        some[start : start + size] for some in kinds.values() for start in range(0, len(some), size)
    ]


class Pool:
    """Rows that wait for a batch."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[Any, ...], list[Prepared]] = {}
        self.rows = self.bytes = 0

    def add(self, row: Prepared) -> None:
        """One more."""
        self._waiting.setdefault(signature(row.inputs), []).append(row)
        self.rows += 1
        self.bytes += row.bytes

    def take(self, most: int, fits: Callable[[int, int], bool]) -> list[Prepared]:
        """A batch with the row that has waited longest, and those most like it in length.

        Args:
            most: rows of a batch.
            fits: whether so many rows of so many tokens do.
        """
        kind, rows = min(self._waiting.items(), key=lambda item: _oldest(item[1]))
        rows.sort(key=lambda row: (row.tokens, row.row.number))
        first = rows.index(min(rows, key=lambda row: row.row.number))
        low = high = first
        while high - low + 1 < min(most, len(rows)):
            below = rows[first].tokens - rows[low - 1].tokens if low else None
            above = rows[high + 1].tokens - rows[first].tokens if high + 1 < len(rows) else None
            down = above is None or (below is not None and below < above)
            longest = rows[high if down else high + 1].tokens
            if not fits(high - low + 2, longest):
                break
            low, high = (low - 1, high) if down else (low, high + 1)
        taken = rows[low : high + 1]
        del rows[low : high + 1]
        if not rows:
            del self._waiting[kind]
        self.rows -= len(taken)
        self.bytes -= sum(row.bytes for row in taken)
        return taken


def _oldest(rows: Iterable[Prepared]) -> int:
    return min(row.row.number for row in rows)
