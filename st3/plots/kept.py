"""Which patches survive: per group of layers, and over time under annealing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps

from st3.engine.session import TrimSession
from st3.inference.places import NOWHERE, Array, Places
from st3.plots.base import headline, name_group, save, sheet


def save_kept(path: Path, places: Places, session: TrimSession, model: str) -> None:
    """Draw which patches survive prefill: one panel a group of layers."""
    groups = session.groups
    figure, axes = sheet(len(groups), 5, shape=places.shape)
    total = session.visual_tokens[0]
    for axis, group in zip(axes, groups, strict=True):
        kept = session.kept(group.first)
        show_kept(axis, places, kept)
        axis.set_title(
            f"{name_group(group)}\n{len(kept)} of {total} ({len(kept) / total:.0%})", fontsize=9
        )
    headline(
        figure,
        f"{model}: visual tokens kept at prefill by {session.method.name} "
        f"({session.layers} layers; dropped patches are grey)\n{places.seen}",
    )
    save(figure, path)


def save_kept_over_time(path: Path, places: Places, session: TrimSession, model: str) -> None:
    """Draw which patches are left after some generated tokens: groups down, time across.

    Raises:
        ValueError: the method does not anneal.
    """
    tau = session.schedule.tau
    if not session.schedule.anneals or tau is None:
        raise ValueError(f"{session.method.name} drops nothing while tokens are generated")
    times = sorted({0, tau // 4, tau // 2, tau * 3 // 4, tau * 9 // 10})
    figure, axes = sheet(len(session.groups) * len(times), len(times), 2.0, shape=places.shape)
    for number, axis in enumerate(axes):
        group, time = session.groups[number // len(times)], times[number % len(times)]
        kept = session.kept(group.first, 0, time)
        show_kept(axis, places, kept)
        axis.set_title(f"{name_group(group)}, token {time}\n{len(kept)} left", fontsize=8)
    headline(
        figure,
        f"{model}: visual tokens left by {session.method.name} as tokens are generated "
        f"({session.schedule.annealing} annealing, tau = {tau}; after it none is left)\n"
        f"{places.seen}",
    )
    save(figure, path)


def show_kept(axis: Any, places: Places, kept: Sequence[int]) -> None:
    """See `kept_pixels`."""
    axis.imshow(kept_pixels(places, kept))


def kept_pixels(places: Places, kept: Sequence[int]) -> Array:
    """Dropped patches turn grey; kept ones stay as they are; what no token stands for is pale.

    Returns:
        Float [height, width, 3] in 0..1.
    """
    alive = np.zeros(places.count, dtype=bool)
    alive[list(kept)] = True
    canvas = places.canvas
    grey = 0.5 + 0.2 * places.grey
    shown = np.where(places.spread(alive, False)[..., None], canvas, grey)
    pixels: Array = np.where((places.owner == NOWHERE)[..., None], 0.85 + 0.15 * canvas, shown)
    return pixels


def depth_pixels(places: Places, deepest: Array, layers: int) -> Array:
    """The picture in greys under cividis: dark patches leave early, bright ones reach the end.

    Args:
        deepest: int [tokens], the last layer that holds each, from 1; 0 where none does.
        layers: of the decoder.

    Returns:
        Float [height, width, 3] in 0..1.
    """
    grey = places.grey
    colours = colormaps["cividis"](places.spread(deepest / layers, 0.0))[..., :3]
    pixels: Array = np.where(
        (places.owner == NOWHERE)[..., None], 0.85 + 0.15 * grey, 0.75 * colours + 0.25 * grey
    )
    return pixels
