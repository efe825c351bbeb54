"""Figures that people read."""

from __future__ import annotations


def si(value: float, unit: str = "") -> str:
    """Four digits and a prefix: 1.678 T."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.4g} {prefix}{unit}"
    return f"{value:.4g} {unit}".rstrip()
