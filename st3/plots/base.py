"""What all figures share: files written whole, colours that everybody can tell apart."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import Any

import matplotlib.backends.backend_agg  # noqa: F401 - here, not while a file is being written
from matplotlib.figure import Figure

from st3.files import replacing
from st3.methods.schedule import Group

# Okabe and Ito's, which colour-blind readers tell apart.
COLOURS = ("#000000", "#56B4E9", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#0072B2")
PANEL = 2.6
"""Inches of a picture in a sheet of many."""
_HEADING = 1.6  # inches that the words above a panel need
_LETTERS = 12.5  # of a headline, an inch


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, all or nothing."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")


def sheet(
    panels: int, columns: int, panel: float = PANEL, beside: float = 0.0, shape: Any = (1, 1)
) -> tuple[Figure, list[Any]]:
    """A figure of `panels` empty axes, at most `columns` in a row, `beside` inches to the right.

    A panel has the area of a square of `panel` inches, and the form of `shape`, height and width.
    """
    columns = min(columns, panels)
    rows = math.ceil(panels / columns)
    tall = min(max((shape[0] / shape[1]) ** 0.5, 0.5), 2.0)
    wide = max(panel / tall, _HEADING)
    size = (max(columns * wide + beside, 5.0), rows * (panel * tall + 0.3) + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes:
        axis.axis("off")
    return figure, axes[:panels]


def headline(figure: Figure, text: str) -> None:
    """Words above a figure, in as many lines as its width asks for."""
    width = max(20, int(figure.get_figwidth() * _LETTERS))
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, width)]
    figure.suptitle("\n".join(lines), fontsize=10)


def plain(*axes: Any) -> None:
    """No frame above and to the right."""
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)


def name_group(group: Group) -> str:
    """ "layer 12" or "layers 4-5"."""
    if group.first == group.last:
        return f"layer {group.first}"
    return f"layers {group.first}-{group.last}"
