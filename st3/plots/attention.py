"""Attention maps: heads and layers laid over the picture, shares, neighbours, concentration.

Every title names the model, whose attention it is, and under which method.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from st3.attention.capture import Capture
from st3.attention.measures import (
    KINDS,
    VISUAL,
    held_by_top,
    shares,
    similarity,
    top_overlap,
    visual_part,
)
from st3.inference.places import Places
from st3.methods.schedule import Group
from st3.plots.base import headline, plain, save, sheet

_HEAT = "magma_r"
_KIND_LOOKS = {
    "system": ("#999999", "..."),
    "visual": ("#D55E00", ""),
    "prompt": ("#56B4E9", "///"),
    "generated": ("#009E73", "\\\\\\"),
}


def save_heads(
    path: Path, places: Places, found: Capture, who: str, layers: Sequence[int],
    heads: Sequence[int],
) -> None:  # fmt: skip
    """Grid of layers (down) and heads (across), each panel scaled to its own largest value."""
    part = visual_part(found.prompt, found.kinds)
    share = shares(found.prompt, found.kinds)[..., VISUAL]
    figure, axes = sheet(len(layers) * len(heads), len(heads), 1.45, 0.9, places.shape)
    for number, axis in enumerate(axes):
        layer, head = layers[number // len(heads)], heads[number % len(heads)]
        image = _lay_over(axis, places, part[layer - 1, head - 1])
        axis.set_title(
            f"layer {layer}, head {head}: {float(share[layer - 1, head - 1]):.0%}", fontsize=7
        )
    _bar(figure, image, axes)
    headline(
        figure,
        f"{who}: attention of the last prompt token to the picture.\n"
        "Percentages: the head's attention that goes to the picture at all\n"
        f"{places.seen}",
    )
    save(figure, path)


def save_layers(path: Path, places: Places, found: Capture, who: str) -> None:
    """One panel a layer, mean over heads, each scaled to its own largest value."""
    part = visual_part(found.prompt.mean(1), found.kinds)
    share = shares(found.prompt.mean(1), found.kinds)[..., VISUAL]
    figure, axes = sheet(len(part), 4 if len(part) <= 12 else 8, 2.2, 0.9, places.shape)
    for number, axis in enumerate(axes):
        image = _lay_over(axis, places, part[number])
        axis.set_title(f"layer {number + 1}: {float(share[number]):.1%}", fontsize=9)
    _bar(figure, image, axes)
    headline(
        figure,
        f"{who}: attention of the last prompt token to the picture, mean over heads.\n"
        "Percentages: the layer's attention that goes to the picture at all\n"
        f"{places.seen}",
    )
    save(figure, path)


def save_shares(path: Path, found: Capture, who: str) -> None:
    """Attention by kind of token, one bar a layer."""
    mean = shares(found.prompt, found.kinds).mean(1).numpy()
    figure = Figure(figsize=(max(5.0, 0.28 * len(mean) + 2.5), 3.6), layout="constrained")
    axis = figure.subplots()
    _stack(axis, range(1, len(mean) + 1), mean)
    axis.set(xlabel="layer", ylabel="share of attention")
    axis.set_title(f"{who}: where the last prompt token looks", fontsize=10)
    save(figure, path)


def save_shares_over_tokens(path: Path, found: Capture, texts: Sequence[str], who: str) -> None:
    """Attention by kind of token, one bar a new token, mean over layers."""
    mean = found.shares.mean((1, 2)).numpy()
    count = len(mean)
    figure = Figure(figsize=(min(16.0, max(6.0, 0.3 * count + 2.5)), 4.0), layout="constrained")
    axis = figure.subplots()
    _stack(axis, range(1, count + 1), mean)
    if count <= 40:
        axis.set_xticks(
            range(1, count + 1), [_safe(text) for text in texts], rotation=90, fontsize=8
        )
        axis.set_xlabel("token that is being computed")
    else:
        axis.set_xlabel("generated token")
    axis.set_ylabel("share of attention")
    axis.set_title(f"{who}: where each new token looks, mean over layers and heads", fontsize=10)
    save(figure, path)


def save_neighbours(
    path: Path, found: Capture, groups: Sequence[Group], top: int, who: str, method: str
) -> None:
    """Similarity of the visual attention of all pairs of layers; overlap of their top tokens."""
    part = visual_part(found.prompt.mean(1), found.kinds)
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    panels = (
        ("cosine similarity of visual attention", similarity(part)),
        (f"overlap of the {top} most attended visual tokens", top_overlap(part, top)),
    )
    extent = (0.5, len(part) + 0.5, len(part) + 0.5, 0.5)
    for axis, (title, matrix) in zip(figure.subplots(1, 2), panels, strict=True):
        image = axis.imshow(matrix.numpy(), cmap="viridis", vmin=0, vmax=1, extent=extent)
        for group in groups:
            low, high = group.first - 0.5, group.last + 0.5
            corners = ([low, high, high, low, low], [low, low, high, high, low])
            axis.plot(*corners, color="white", linewidth=3.0)
            axis.plot(*corners, color="#D55E00", linewidth=1.5)
        axis.set_title(title, fontsize=9)
        axis.set(xlabel="layer", ylabel="layer")
        figure.colorbar(image, ax=axis, shrink=0.8)
    headline(
        figure,
        f"{who}: do layers attend alike? (mean over heads; frames: the groups of layers in which "
        f"{method} keeps one choice)",
    )
    save(figure, path)


def save_concentration(path: Path, found: Capture, who: str) -> None:
    """Visual attention held by the most attended x % of the visual tokens, one line a layer."""
    held = held_by_top(visual_part(found.prompt.mean(1), found.kinds)).numpy()
    layers, count = held.shape
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axis = figure.subplots()
    x = np.arange(count + 1) / count
    scale = Normalize(1, max(layers, 2))
    colours = colormaps["viridis"]
    for number, line in enumerate(held, start=1):
        axis.plot(x, np.concatenate(([0.0], line)), color=colours(scale(number)), linewidth=1.3)
    axis.plot(x, x, color="black", linestyle=":", linewidth=1)
    axis.annotate("all tokens alike", (0.62, 0.58), fontsize=8, rotation=32)
    axis.axhline(0.9, color="grey", linewidth=0.8)
    axis.annotate("90 %", (0.94, 0.915), fontsize=8, color="grey")
    axis.xaxis.set_major_formatter(PercentFormatter(1))
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    axis.set(
        xlabel="most attended visual tokens", ylabel="visual attention that they hold",
        xlim=(0, 1), ylim=(0, 1.02),
    )  # fmt: skip
    figure.colorbar(ScalarMappable(scale, colours), ax=axis, label="layer")
    axis.set_title(f"{who}: how few tokens hold the visual attention", fontsize=10)
    plain(axis)
    save(figure, path)


def _lay_over(axis: Any, places: Places, values: torch.Tensor) -> Any:
    """Heat over the picture in light grey; scaled to the panel's largest value, square root.

    Where nothing is attended, as on dropped tokens, the picture alone is left.
    """
    grey = 0.4 + 0.6 * places.grey[..., 0]
    axis.imshow(grey, cmap="gray", vmin=0, vmax=1)
    largest = float(values.max()) or 1.0
    heat = places.spread((values / largest).masked_fill(values == 0, torch.nan).numpy(), np.nan)
    return axis.imshow(heat, cmap=_HEAT, norm=PowerNorm(0.5, 0, 1), alpha=0.6)


def _bar(figure: Figure, image: Any, axes: Sequence[Any]) -> None:
    bar = figure.colorbar(
        image, ax=list(axes), shrink=min(1.0, 3.5 / figure.get_figheight()), pad=0.01
    )
    bar.set_label("attention, share of the panel's largest (square-root scale)", fontsize=8)


def _stack(axis: Any, places: Sequence[int], rows: np.ndarray[Any, Any]) -> None:
    bottom = np.zeros(len(rows))
    for number, kind in enumerate(KINDS):
        values = rows[:, number]
        if values.any():
            colour, hatch = _KIND_LOOKS[kind]
            axis.bar(
                list(places), values, bottom=bottom, width=0.9, label=kind, color=colour,
                hatch=hatch, edgecolor="white", linewidth=0,
            )  # fmt: skip
            bottom = bottom + values
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    axis.set_ylim(0, 1)
    axis.set_xlim(0.4, len(rows) + 0.6)
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    plain(axis)


def _safe(text: str) -> str:
    """A token as an axis can show it: matplotlib takes $ for mathematics."""
    return text.strip().replace("$", r"\$") or "·"
