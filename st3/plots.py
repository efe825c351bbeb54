"""Every figure that st3 draws; matplotlib is imported here and nowhere else."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from st3.files import replacing
from st3.schedule import Group, Schedule
from st3.session import TrimSession

_PANEL = 2.6  # inches
_COLUMNS = 5


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, all or nothing."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")


def save_kept(
    path: Path,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    picture: Image.Image,
    session: TrimSession | None,
) -> None:
    """Draw which patches survive prefill: one panel a group of layers, on what the model sees.

    Raises:
        ValueError: the model does not lay its visual tokens out as one square grid.
    """
    if session is None:
        raise ValueError("nothing was trimmed: there are no kept patches to show")
    total = session.visual_tokens[0]
    side = math.isqrt(total)
    if side * side != total:
        raise ValueError(f"{total} visual tokens are no square grid: cannot draw the kept patches")
    seen = seen_by_model(processor, picture)
    groups = session.groups
    columns = min(_COLUMNS, len(groups))
    rows = math.ceil(len(groups) / columns)
    size = (max(columns, 2) * _PANEL, rows * (_PANEL + 0.35) + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, group in zip(axes.flat, groups, strict=False):
        kept = session.kept(group.first)
        alive = np.zeros(total, dtype=bool)
        alive[kept] = True
        _show_patches(axis, seen, alive.reshape(side, side))
        axis.set_title(
            f"{_name(group)}\n{len(kept)} of {total} ({len(kept) / total:.0%})", fontsize=9
        )
    figure.suptitle(
        f"Visual tokens kept at prefill by {session.method.name}, {session.layers} layers",
        fontsize=10,
    )
    save(figure, path)


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
        right.plot(steps, counts, label=_name(group))
    right.set(xlabel="generated tokens", title=f"while decoding (VTA, tau = {tau})", ylim=0)
    right.legend(frameon=False, fontsize=8)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def seen_by_model(processor: ProcessorMixin, picture: Image.Image) -> np.ndarray[Any, Any]:
    """The picture as the model gets it, resized and cropped: float [height, width, 3] in 0..1."""
    images: Any = processor.image_processor
    pixels = images(picture, return_tensors="np")["pixel_values"][0]
    mean, std = np.array(images.image_mean), np.array(images.image_std)
    shown: np.ndarray[Any, Any] = (np.moveaxis(pixels, 0, -1) * std + mean).clip(0, 1)
    return shown


def _show_patches(axis: Any, seen: np.ndarray[Any, Any], alive: np.ndarray[Any, Any]) -> None:
    """Dropped patches turn grey; kept ones stay as they are."""
    height, width, _ = seen.shape
    rows = np.arange(height) * alive.shape[0] // height
    columns = np.arange(width) * alive.shape[1] // width
    mask = alive[rows][:, columns, None]
    grey = 0.5 + 0.2 * seen.mean(axis=2, keepdims=True)
    axis.imshow(np.where(mask, seen, grey))


def _name(group: Group) -> str:
    return (
        f"layer {group.first}"
        if group.first == group.last
        else f"layers {group.first}-{group.last}"
    )
