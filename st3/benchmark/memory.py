"""The largest batch that fits into so much memory."""

from __future__ import annotations

from collections.abc import Callable

_PROBES = 8, 16
_NEAR = 1.05  # so close to what did not fit, or to the line's promise, the search ends
_STEP = 0.9  # what is tried next where a batch did not fit


class OutOfBudget(Exception):
    """A batch did not fit."""


def largest_batch(attempt: Callable[[int], int], budget: float) -> tuple[int, int]:
    """Find it in a few attempts: memory grows with the batch along a line.

    Two small batches make the line; what it promises is tried, and less where fragments are in the
    way; where much is left, the line is drawn anew. Then what fits and what does not close in on
    each other. So the result is within a few percent of the largest, never above it, and was run.

    Args:
        attempt: runs a batch; its peak in bytes. Raises `OutOfBudget`.
        budget: bytes.

    Returns:
        The batch, and its peak.

    Raises:
        ValueError: not even one fits.
    """
    fits: dict[int, int] = {}
    too_many = None
    batch, after = _PROBES
    while True:
        try:
            fits[batch] = attempt(batch)
        except OutOfBudget:
            too_many = batch
        best = max(fits, default=0)
        if too_many is None:
            line = after if len(fits) == 1 else _on_line(fits, budget)
            if line == best or (len(fits) > len(_PROBES) and line < _NEAR * best):
                break
            batch = line
        elif too_many - best <= max(1, (_NEAR - 1) * best):
            break
        else:
            batch = max(int(_STEP * too_many), (best + too_many) // 2)
            batch = min(max(batch, best + 1), too_many - 1)
    if not best:
        raise ValueError(f"not even one prompt fits into {budget / 1e9:g} GB")
    return best, fits[best]


def _on_line(fits: dict[int, int], budget: float) -> int:
    """The batch at which the line through the two largest reaches the budget, at least these."""
    few, many = sorted(fits)[-2:]
    each = max((fits[many] - fits[few]) / (many - few), 1)
    return max(int(many + (budget - fits[many]) / each), many)
