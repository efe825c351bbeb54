"""Benchmarks: the score of each method with its interval, a panel a task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from st3.plots.base import COLOURS, headline, plain, save

_PANELS = 3  # in a row
_LINE = 0.32  # inches of a method


def save_scores(path: Path, rows: Sequence[dict[str, Any]], title: str) -> None:
    """A dot and a bar each, a grey band where `none` lies, a dashed line at the published figure.

    Args:
        rows: with a score, see `st3.evaluation.results`.
    """
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    columns = min(_PANELS, len(tasks))
    lines = -(-len(tasks) // columns)
    size = (3.4 * columns + 1.6, lines * (_LINE * len(methods) + 1.3) + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axis, task in zip(axes, tasks, strict=False):
        _panel(axis, [row for row in rows if row["task"] == task], methods)
    for axis in axes[len(tasks) :]:
        axis.axis("off")
    headline(figure, title)
    plain(*axes[: len(tasks)])
    save(figure, path)


def _panel(axis: Any, rows: Sequence[dict[str, Any]], methods: Sequence[str]) -> None:
    for row in rows:
        place, colour = methods.index(row["method"]), COLOURS[6]
        if row["method"] == "none":
            colour = COLOURS[0]
            if row["low"] is not None:
                axis.axvspan(row["low"], row["high"], color="#EEEEEE", zorder=0)
        if row["low"] is not None:
            axis.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=1.5)
        axis.plot([row["score"]], [place], marker="o", markersize=5, color=colour)
        share = row["prefill_macs_ratio"]
        if share is not None:
            axis.annotate(
                f"{share:.0%} MACs", (row["score"], place), fontsize=6, xytext=(0, 5),
                textcoords="offset points", ha="center",
            )  # fmt: skip
    known = next((row["published"] for row in rows if row["published"] is not None), None)
    if known is not None:
        axis.axvline(known, color=COLOURS[3], linestyle="--", linewidth=1)
    axis.set_yticks(range(len(methods)), methods, fontsize=8)
    axis.set_ylim(len(methods) - 0.4, -0.6)
    axis.set_title(f"{rows[0]['title']}: {rows[0]['metric']}", fontsize=9)
    axis.set_xlabel("score, 95 % interval" + (", dashed: published" if known is not None else ""))
