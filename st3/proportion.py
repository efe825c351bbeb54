"""How sure a share is."""

from __future__ import annotations

_Z = 1.959964  # of 95 %


def interval(right: int, asked: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (Wilson, 1927)."""
    share, spread = right / asked, _Z**2 / asked
    centre = share + spread / 2
    half = _Z * (share * (1 - share) / asked + spread / (4 * asked)) ** 0.5
    return max(0.0, (centre - half) / (1 + spread)), min(1.0, (centre + half) / (1 + spread))
