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
