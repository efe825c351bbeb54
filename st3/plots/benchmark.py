"""What a suite measured: speed, the saving that arrived, when which kernel ran, two runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from st3.plots.base import COLOURS, headline, plain, save

Bars = Sequence[tuple[str, float | None, float | None]]
"""Labels, lengths, and half of a spread; None is not measured."""
_COLUMNS = 3


def save_bars(path: Path, panels: Mapping[str, Bars], what: str, title: str) -> None:
    """Horizontal bars, a panel a workload; 1 is marked.

    Args:
        panels: title -> bars.
        what: the bars' unit, in words.
        title: above all.
    """
    columns = min(_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    most = max(len(bars) for bars in panels.values())
    figure = Figure(figsize=(4.2 * columns, rows * (0.3 * most + 1.25) + 0.5), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, (name, bars) in zip(axes, panels.items(), strict=False):
        labels = [label for label, _, _ in bars]
        lengths = [length or 0.0 for _, length, _ in bars]
        errors = [half or 0.0 for _, _, half in bars]
        axis.barh(range(len(bars)), lengths, 0.7, xerr=errors, color=COLOURS[1], ecolor="grey")
        for place, (_, length, half) in enumerate(bars):
            text = "not measured" if length is None else f"{length:.2f}x"
            axis.text((length or 0.0) + (half or 0.0), place, f" {text}", va="center", fontsize=8)
        axis.axvline(1, color="grey", linewidth=0.8, linestyle=":")
        axis.set_yticks(range(len(bars)), labels, fontsize=8)
        axis.set_xlim(0, 1.3 * max(1.0, *(a + b for a, b in zip(lengths, errors, strict=True))))
        axis.set_title(name, fontsize=9)
        axis.set_xlabel(what, fontsize=8)
        axis.invert_yaxis()
        plain(axis)
    for axis in axes[len(panels) :]:
        axis.axis("off")
    headline(figure, title)
    save(figure, path)


def save_savings(path: Path, rows: Sequence[tuple[str, float, float]], title: str) -> None:
    """Beside the share of prefill that arithmetic promises to save, the one that was saved.

    Args:
        rows: label, promised, saved.
        title: above it.
    """
    figure = Figure(figsize=(8, 0.42 * len(rows) + 1.6), layout="constrained")
    axis = figure.subplots()
    for offset, number, colour, name in ((0, 1, 6, "could be saved"), (0.4, 2, 1, "was saved")):
        bars = axis.barh(
            [place + offset for place in range(len(rows))], [row[number] for row in rows], 0.4,
            color=COLOURS[colour], label=name,
        )  # fmt: skip
        axis.bar_label(bars, [f"{row[number]:.0%}" for row in rows], padding=3, fontsize=7)
    axis.set_yticks([place + 0.2 for place in range(len(rows))], [row[0] for row in rows])
    axis.tick_params(labelsize=8)
    axis.xaxis.set_major_formatter(PercentFormatter(1))
    axis.set_xlabel("of stock's prefill")
    axis.margins(x=0.12)
    axis.legend(frameon=False, fontsize=8, loc="lower right")
    axis.invert_yaxis()
    plain(axis)
    headline(figure, title)
    save(figure, path)


def save_timelines(path: Path, entries: Sequence[Mapping[str, Any]], title: str) -> None:
    """A strip for each pass: kernels from start to end, coloured by kind; white is waiting.

    Args:
        entries: of `st3.profiling.timeline.timelines`.
        title: above it.
    """
    figure = Figure(figsize=(11, 0.95 * len(entries) + 1.2), layout="constrained")
    axes = figure.subplots(len(entries), 1, squeeze=False)[:, 0]
    kinds = list(dict.fromkeys(kind for entry in entries for _, _, kind in entry["events"]))
    colours = {kind: COLOURS[n % len(COLOURS)] for n, kind in enumerate(sorted(kinds))}
    for axis, entry in zip(axes, entries, strict=True):
        for kind, colour in colours.items():
            spans = [(start, took) for start, took, own in entry["events"] if own == kind]
            axis.broken_barh(spans, (0, 1), color=colour, linewidth=0)
        axis.set_xlim(0, entry["span_ms"])
        axis.set_yticks([])
        axis.set_title(
            f"{entry['method']}, {entry['phase']}: {entry['span_ms']:.4g} ms, of which none runs "
            f"in {entry['idle_share']:.0%}",
            fontsize=8, loc="left",
        )  # fmt: skip
        axis.tick_params(labelsize=7)
        axis.spines[["left", "top", "right"]].set_visible(False)
    axes[-1].set_xlabel("ms under the profiler", fontsize=8)
    handles = [Patch(color=colour, label=kind) for kind, colour in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    headline(figure, title)
    save(figure, path)
