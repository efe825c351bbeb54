"""What methods cost: schedules, MACs and KV cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from st3.methods.schedule import Schedule
from st3.plots.base import COLOURS, headline, name_group, plain, save
from st3.units import si

if TYPE_CHECKING:
    from st3.profiling import Report


def save_schedule(path: Path, schedules: dict[str, Schedule], visual: int) -> None:
    """Draw the visual tokens alive per layer, and for the first one over generated tokens."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (label, schedule), style in zip(schedules.items(), ("-", "--", ":", "-."), strict=False):
        layers = range(1, schedule.layers + 1)
        left.step(
            layers, [schedule.count(n, visual) for n in layers], style, where="mid", label=label
        )
    left.set(xlabel="layer", ylabel="visual tokens alive", title="at prefill (PVTP)", ylim=0)
    left.legend(frameon=False, fontsize=8)
    schedule = next(iter(schedules.values()))
    tau = schedule.tau or 1
    steps = range(int(tau * 1.15))
    for group in schedule.groups()[:: max(1, len(schedule.groups()) // 4)]:
        counts = [schedule.count(group.first, visual, t) for t in steps]
        right.plot(steps, counts, label=name_group(group))
    right.set(xlabel="generated tokens", title=f"while decoding (VTA, tau = {tau})", ylim=0)
    right.legend(frameon=False, fontsize=8)
    plain(left, right)
    save(figure, path)


def save_profile(path: Path, report: Report) -> None:
    """Draw what a profile counted: visual tokens per layer and over time, MACs and KV cache."""
    batch = report.rows[0].batch_size
    rows = [row for row in report.rows if row.method in report.alive and row.batch_size == batch]
    figure = Figure(figsize=(10, 7.2), layout="constrained")
    (layers, time), (macs, cache) = figure.subplots(2, 2)
    looks = _looks(len(report.alive))
    for (label, alive), look in zip(report.alive.items(), looks, strict=True):
        depth = range(1, len(alive[0]) + 1)
        layers.step(depth, alive[0], where="mid", label=label, **look)
        time.plot([fmean(counts) for counts in alive], label=label, **look)
    layers.set(xlabel="layer", ylabel="visual tokens alive", title="At prefill", ylim=0)
    time.set(
        xlabel="generated tokens", ylabel="visual tokens alive, mean over layers",
        title="While decoding", ylim=0,
    )  # fmt: skip
    figure.legend(
        *layers.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=5,
        frameon=False,
        fontsize=8,
    )
    labels = [row.method for row in rows]
    _bars(macs, labels, {"prefill": [row.prefill_macs_ratio for row in rows]})
    macs.set(
        xlabel=f"MACs of the decoder, share of untrimmed ({si(report.rows[0].prefill_macs or 0)})",
        title="Compute of prefill",
    )
    _bars(
        cache, labels,
        {
            "after prefill": [row.kv_ratio for row in rows],
            "mean": [row.kv_mean_ratio for row in rows],
        },
    )  # fmt: skip
    cache.set(
        xlabel="live keys and values, share of untrimmed",
        title="KV cache",
    )
    cache.legend(frameon=False, fontsize=8, loc="lower right")
    plain(layers, time, macs, cache)
    settings = report.settings
    headline(
        figure,
        f"{report.model}: {settings['visual_tokens']} visual + {settings['text_tokens']} text "
        f"tokens, {settings['new_tokens']} new, batch {batch}: compute and memory"
        " (counted)",
    )
    save(figure, path)


def _looks(count: int) -> Iterator[dict[str, Any]]:
    """For lines that may lie on each other: thinner from one to the next."""
    for number in range(count):
        width = 1.2 + 4 * (count - 1 - number) / max(count - 1, 1)
        style = ("-", "--", ":")[number // len(COLOURS) % 3]
        yield {"color": COLOURS[number % len(COLOURS)], "linestyle": style, "linewidth": width}


def _bars(axis: Any, labels: list[str], series: dict[str, list[Any]]) -> None:
    """Horizontal bars, one group a label, the first on top; each with its figure."""
    height = 0.8 / len(series)
    for number, (name, values) in enumerate(series.items()):
        places = [place + number * height for place in range(len(labels))]
        bars = axis.barh(
            places, values, height, label=name, color=("#0072B2", "#56B4E9")[number % 2]
        )
        axis.bar_label(bars, [f"{value:.1%}" for value in values], padding=3, fontsize=8)
    axis.set_yticks([place + (len(series) - 1) * height / 2 for place in range(len(labels))])
    axis.set_yticklabels(labels)
    axis.set_xlim(0, 1.15)
    axis.xaxis.set_major_formatter(PercentFormatter(1))
    axis.invert_yaxis()
