"""Figures that people read."""

from __future__ import annotations


def si(value: float, unit: str = "") -> str:
    """Four digits and a prefix: 1.678 T."""
    text, prefix = f"{value:.4g}", ""
    for larger in ("k", "M", "G", "T", "P"):
        if abs(float(text)) < 1000:  # after rounding
            break
        value /= 1000
        text, prefix = f"{value:.4g}", larger
    return f"{text} {prefix}{unit}".rstrip()


def count(number: int, thing: str) -> str:
    """So many of something: 1 row, 2 rows."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def duration(seconds: float) -> str:
    """Roughly, in the unit that suits: 40 s, 4 min, 1.5 h."""
    if seconds < 99.5:
        return f"{max(1, round(seconds))} s"
    minutes = seconds / 60
    return f"{round(minutes)} min" if minutes < 99.5 else f"{minutes / 60:.2g} h"
