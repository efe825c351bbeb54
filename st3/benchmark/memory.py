"""The largest batch that fits into so much memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

_PROBES = 8, 16
_WORTH = 1.05  # times as large: another attempt
_STEP = 0.97  # what is tried next where a batch did not fit


class OutOfBudget(Exception):
    """A batch did not fit."""


def largest_batch(attempt: Callable[[int], int], budget: float) -> tuple[int, int]:
    """Find it in a few attempts: memory grows with the batch along a line.

    Two small batches make the line; what it promises is tried, and a little less where fragments
    are in the way; where much is left, the line is drawn anew, once. So the result is within a few
    percent of the largest, never above it.

    Args:
        attempt: runs a batch; its peak in bytes. Raises `OutOfBudget`.
        budget: bytes.

    Returns:
        The batch, and its peak.

    Raises:
        ValueError: not even one fits.
    """
    few, many = _PROBES
    low = None
    try:
        low, high = attempt(few), attempt(many)
        batch = _on_line(few, low, many, high, budget)
    except OutOfBudget:
        batch = many - 1
    while batch >= 1:
        with suppress(OutOfBudget):
            peak = attempt(batch)
            break
        batch = min(batch - 1, int(_STEP * batch))
    else:
        raise ValueError(f"not even one prompt fits into {budget / 1e9:g} GB")
    more = _on_line(few, low, batch, peak, budget) if low is not None else batch
    if more > _WORTH * batch:
        with suppress(OutOfBudget):
            return more, attempt(more)
    return batch, peak


def _on_line(few: int, low: int, many: int, high: int, budget: float) -> int:
    """The batch at which the line through two others reaches the budget, at least the larger."""
    each = max((high - low) / max(many - few, 1), 1)
    return max(int(many + (budget - high) / each), many)
