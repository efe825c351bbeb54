"""A sweep: heatmaps over the S x R grid, fidelity over compute with its front, tau curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import PercentFormatter

from st3.methods.pvtp import strides_below
from st3.plots.base import COLOURS, headline, plain, save

_MEASURES = {
    "fidelity": ("same answers as untrimmed", "viridis"),
    "accuracy": ("right answers", "viridis"),
    "kl": ("KL to untrimmed, thousandths of a nat", "viridis_r"),
    "prefill_macs_ratio": ("MACs of prefill, of untrimmed", "viridis_r"),
    "kv_ratio": ("KV cache after prefill, of untrimmed", "viridis_r"),
}
_LINES = (0.0, 0.05, 0.1, 0.2, 0.3)


def save_heatmaps(path: Path, rows: Sequence[dict[str, Any]], layers: int, title: str) -> None:
    """One panel a measure over S and R, or over S and C if those were asked for.

    Cells that cannot be are hatched; in a grid of R, lines join settings of one C.

    Args:
        rows: of the grid, all of one tau.
        layers: of the decoder.
    """
    by = "final_keep" if any("final_keep=" in row["spec"] for row in rows) else "ratio"
    strides = sorted({row["stride"] for row in rows})
    values = sorted({round(row[by], 9) for row in rows})
    shown = [key for key in _MEASURES if any(row.get(key) is not None for row in rows)]
    width = max(3.0, 0.75 * len(strides) + 1.2)
    size = (width * len(shown) + 0.4, max(3.0, 0.42 * len(values) + 1.8))
    figure = Figure(figsize=size, layout="constrained")
    for axis, key in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        _heatmap(axis, rows, strides, values, key, by)
        if by == "ratio":
            _lines_of_one_c(axis, rows, strides, values, layers)
    what = "   (hatched: C < 0, cannot be; dashed: equal C)" if by == "ratio" else ""
    headline(figure, title + what)
    save(figure, path)


def save_front(
    path: Path, rows: Sequence[dict[str, Any]], front: Sequence[str], title: str
) -> None:
    """Fidelity over MACs, one point a cell; the front is named."""
    figure = Figure(figsize=(9.5, 5), layout="constrained")
    axis = figure.subplots()
    for grid, marker, label in ((True, "o", "S x R grid"), (False, "s", "other methods")):
        some = [row for row in rows if (row["stride"] is not None) == grid]
        if some:
            axis.scatter(
                [row["prefill_macs_ratio"] for row in some], [row["fidelity"] for row in some],
                marker=marker, s=36, color=COLOURS[6] if grid else COLOURS[3], label=label,
                alpha=0.8, zorder=3,
            )  # fmt: skip
    on_front = [row for spec in front for row in rows if row["spec"] == spec]
    x, y = ([row[key] for row in on_front] for key in ("prefill_macs_ratio", "fidelity"))
    axis.step(x, y, where="post", color="grey", linewidth=1, label="Pareto front")
    named = on_front + [row for row in rows if row["stride"] is None and row not in on_front]
    for number, row in enumerate(named, start=1):
        axis.annotate(
            str(number), (row["prefill_macs_ratio"], row["fidelity"]), fontsize=8,
            xytext=(4, 4 if number % 2 else -11), textcoords="offset points",
        )  # fmt: skip
    lines = [f"{number}  {row['spec']}" for number, row in enumerate(named, start=1)]
    lines.insert(len(on_front), "")
    axis.text(1.02, 1, "Pareto front:\n" + "\n".join(lines), fontsize=7, va="top",
              transform=axis.transAxes)  # fmt: skip
    axis.xaxis.set_major_formatter(PercentFormatter(1))
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    axis.set(xlabel="MACs of prefill, of untrimmed", ylabel="same answers as untrimmed")
    axis.set_title(title, fontsize=10)
    axis.margins(x=0.15, y=0.12)
    axis.legend(frameon=False, fontsize=8, loc="lower right")
    plain(axis)
    save(figure, path)


def save_taus(path: Path, rows: Sequence[dict[str, Any]], title: str) -> None:
    """Fidelity and mean KV cache over tau, one line a stride and ratio; no annealing at the end."""
    taus = sorted({row["tau"] for row in rows}, key=lambda tau: (tau is None, tau or 0))
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    settings = list(dict.fromkeys((row["stride"], row["ratio"]) for row in rows))
    for number, (stride, ratio) in enumerate(settings):
        line = {row["tau"]: row for row in rows if (row["stride"], row["ratio"]) == (stride, ratio)}
        places = [n for n, tau in enumerate(taus) if tau in line]
        for axis, key in ((left, "fidelity"), (right, "kv_mean_ratio")):
            axis.plot(
                places, [line[taus[n]][key] for n in places], marker="o", markersize=4,
                color=COLOURS[number % len(COLOURS)],
                linestyle=("-", "--", ":", "-.")[number // len(COLOURS) % 4],
                label=f"S = {stride}, R = {ratio:.3g}",
            )  # fmt: skip
    names = ["none" if tau is None else str(tau) for tau in taus]
    for axis, label in ((left, "same answers as untrimmed"), (right, "KV cache on average")):
        axis.set_xticks(range(len(taus)), names)
        axis.set(xlabel="tau (generated tokens)", ylabel=label)
        axis.yaxis.set_major_formatter(PercentFormatter(1))
    right.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    headline(figure, title)
    plain(left, right)
    save(figure, path)


def _heatmap(
    axis: Any, rows: Sequence[dict[str, Any]], strides: list[int], values: list[float], key: str,
    by: str,
) -> None:  # fmt: skip
    title, colours = _MEASURES[key]
    grid = np.full((len(values), len(strides)), np.nan)
    for row in rows:
        place = values.index(round(row[by], 9)), strides.index(row["stride"])
        if row.get(key) is not None:
            grid[place] = row[key]
        elif "problem" in row:
            axis.add_patch(_hatched(place[1], place[0]))
    share = key in {"fidelity", "accuracy"}
    axis.imshow(
        grid, cmap=colours, aspect="auto", origin="lower",
        vmin=min(0.9, float(np.nanmin(grid))) if share else None, vmax=1.0 if share else None,
    )  # fmt: skip
    for (y, x), value in np.ndenumerate(grid):
        if np.isfinite(value):
            text = f"{1000 * value:.2g}" if key == "kl" else f"{value:.0%}"
            axis.text(
                x, y, text, ha="center", va="center", fontsize=8, zorder=5,
                path_effects=[withStroke(linewidth=2.2, foreground="white")],
            )  # fmt: skip
    axis.set_xticks(range(len(strides)), [str(s) for s in strides])
    axis.set_yticks(range(len(values)), [f"{value:.1%}" for value in values])
    axis.set(xlabel="stride S", ylabel="R" if by == "ratio" else "C")
    axis.set_title(title, fontsize=9)


def _hatched(x: int, y: int) -> Any:
    return Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor="#EEEEEE", edgecolor="grey", hatch="///")


def _lines_of_one_c(
    axis: Any, rows: Sequence[dict[str, Any]], strides: list[int], ratios: list[float], layers: int
) -> None:
    """Where the last layer keeps one C: R = (1 - P - C) / floor((L - 3) / S), eq. 9."""
    first = rows[0]
    prune = 1 - first["final_keep"] - strides_below(layers, first["stride"]) * first["ratio"]
    axis.set_xlim(-0.5, len(strides) - 0.5)
    axis.set_ylim(-0.5, len(ratios) - 0.5)
    for c in _LINES:
        points = []
        for x, stride in enumerate(strides):
            steps = strides_below(layers, stride)
            ratio = (1 - prune - c) / steps if steps else np.nan
            if ratios[0] <= ratio <= ratios[-1]:
                points.append((x, float(np.interp(ratio, ratios, range(len(ratios))))))
        if len(points) > 1:
            xs, ys = zip(*points, strict=True)
            axis.plot(xs, ys, color="white", linewidth=2.6)
            axis.plot(xs, ys, color="black", linewidth=1, linestyle="--")
            axis.annotate(
                f"C = {c:.0%}", points[-1], fontsize=7, xytext=(-3, 6), textcoords="offset points",
                ha="right", path_effects=[withStroke(linewidth=2, foreground="white")], zorder=5,
            )  # fmt: skip
