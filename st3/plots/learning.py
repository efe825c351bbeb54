"""The demo's learning curve, from the log of its training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from st3.plots.base import COLOURS, plain, save

_DASHES = ("-", "--")
_RIGHT = "right:"


def save_learning(path: Path, log: Sequence[dict[str, Any]]) -> None:
    """Share of right answers of each task over the steps, one panel a stage.

    Args:
        path: a PNG.
        log: lines of `log.jsonl`; stages without tasks are left out.
    """
    lines = [line for line in log if any(key.startswith(_RIGHT) for key in line)]
    stages = list(dict.fromkeys(line["stage"] for line in lines))
    tasks = sorted({key for line in lines for key in line if key.startswith(_RIGHT)})
    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    panels = figure.subplots(1, len(stages), squeeze=False, sharey=True)[0]
    for axis, stage in zip(panels, stages, strict=True):
        own = [line for line in lines if line["stage"] == stage]
        for number, task in enumerate(tasks):
            points = [(line["step"], line[task]) for line in own if task in line]
            axis.plot(
                *zip(*points, strict=True),
                color=COLOURS[number % len(COLOURS)],
                linestyle=_DASHES[number // len(COLOURS)],
                linewidth=1.3,
                label=task.removeprefix(_RIGHT),
            )
        axis.set_title(f"stage {stage}, {own[-1]['of']} steps", fontsize=10)
        axis.set_xlabel("step")
        axis.set_ylim(0, 1.02)
        axis.grid(alpha=0.25)
        plain(axis)
    panels[0].set_ylabel("share of answers that are right, in training")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)
    save(figure, path)
