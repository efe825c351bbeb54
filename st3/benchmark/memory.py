"""The largest batch that fits into so much memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

_PROBES = 2, 8
_STEP = 0.97  # what is tried next where a batch did not fit


class OutOfBudget(Exception):
    """A batch did not fit."""


def largest_batch(attempt: Callable[[int], int], budget: float) -> tuple[int, int]:
    """Find it in a few attempts: memory grows with the batch along a line.

    Two small batches make the line; what it promises is tried, and a little less where
    fragments are in the way. So the result is within a few percent of the largest, never above it.

    Args:
        attempt: runs a batch; its peak in bytes. Raises `OutOfBudget`.
        budget: bytes.

    Returns:
        The batch, and its peak.

    Raises:
        ValueError: not even one fits.
    """
    few, many = _PROBES
    try:
        low, high = attempt(few), attempt(many)
        each = max((high - low) / (many - few), 1)
        batch = max(int(many + (budget - high) / each), many)
    except OutOfBudget:
        batch = many - 1
    while batch >= 1:
        with suppress(OutOfBudget):
            return batch, attempt(batch)
        batch = min(batch - 1, int(_STEP * batch))
    raise ValueError(f"not even one prompt fits into {budget / 1e9:g} GB")
