"""Methods at equal tokens: a line each, what is right with its interval, and what it computes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from st3.plots.base import COLOURS, headline, plain, save

_LOOKS = (("o", COLOURS[3]), ("s", COLOURS[6]), ("^", COLOURS[0]), ("D", COLOURS[4]))
"""Marks differ in shape as well as in colour."""
_APART = 0.56  # of a line, that the marks of one method share

Point = tuple[float, float, float, float]


def save_leaderboard(
    path: Path,
    lines: Mapping[str, Mapping[int, Point]],
    untrimmed: float,
    what: str,
    title: str,
) -> None:
    """A line a method, the first on top; a mark a budget, the smallest on top.

    On the left the measure with its interval, on the right the compute: methods before the decoder
    share one figure of it, and would lie on each other in a plane of both.

    Args:
        lines: method -> budget in tokens -> (MACs, value, low, high), shares.
        untrimmed: the measure of the untrimmed model.
        what: the measure in words.
    """
    budgets = sorted({budget for points in lines.values() for budget in points})
    figure = Figure(figsize=(9.5, 0.27 * len(lines) + 1.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1.4))
    for number, budget in enumerate(budgets):
        marker, colour = _LOOKS[number % len(_LOOKS)]
        shift = _APART * ((number + 0.5) / len(budgets) - 0.5)
        some = [(y + shift, points[budget]) for y, points in enumerate(lines.values())
                if budget in points]  # fmt: skip
        places = [y for y, _ in some]
        macs, value, low, high = zip(*(point for _, point in some), strict=True)
        errors = [
            [max(0.0, v - bound) for v, bound in zip(value, low, strict=True)],
            [max(0.0, bound - v) for v, bound in zip(value, high, strict=True)],
        ]
        left.errorbar(
            value, places, xerr=errors, fmt=marker, color=colour, markersize=4, elinewidth=0.8,
            label=f"{budget} tokens a layer", zorder=3,
        )  # fmt: skip
        right.plot(macs, places, marker, color=colour, markersize=4, zorder=3)
    left.axvline(untrimmed, color="grey", linewidth=1, linestyle=":", label="untrimmed")
    left.set_yticks(range(len(lines)), list(lines), fontsize=8)
    left.set_ylim(len(lines) - 0.4, -0.6)
    left.set_xlabel(f"{what}, with 95 % intervals")
    right.set_xlabel("MACs of prefill, of untrimmed")
    right.set_xlim(left=0)
    for axis in (left, right):
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axis.grid(axis="y", color="#E5E5E5", linewidth=0.6)
        axis.set_axisbelow(True)
    figure.legend(
        *left.get_legend_handles_labels(), loc="outside lower center", ncols=len(budgets) + 1,
        frameon=False, fontsize=8,
    )  # fmt: skip
    headline(figure, title)
    plain(left, right)
    save(figure, path)
