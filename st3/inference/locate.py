"""Find where the visual tokens of a prompt lie: by asking the processor and the model's own code.

In place of the pictures, or of a video's frames, the processor gets others of their size, whose
brightness tells where a pixel lies, or of which of them it is. What it makes of them, resized,
cropped, padded and cut into tiles, is carried on to the tokens (`st3.families.vision_path`). So
nothing needs to be known of either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from st3.families.vision_path import VisionPath
from st3.inference.places import Places, places_from

_DARK, _BRIGHT = 16, 239  # of a slope: resizing may overshoot at its ends
_SEEN = 0.05  # share of a token's pixels that must be of a picture, and not its frame
_NO_PIXEL = 1e-4
_MANY = _BRIGHT - _DARK  # pictures, which are told apart by a grey each
_BETWEEN = 0.25  # of a frame: tokens that are less apart are of the same ones
_LEAST = 2  # pixels of a side, to tell its ends apart
_PIXELS, _PASSES = 100_000, 12  # a picture of fewer pixels is painted several times, at most 12

Process = Callable[[Sequence[Image.Image]], dict[str, Any]]


def locate(
    config: Any,
    process: Process,
    pictures: Sequence[Image.Image],
    tokens: int,
    *,
    video: bool = False,
) -> Places:
    """Where each visual token of one prompt lies.

    Args:
        config: the model's.
        process: the processor's outputs for the prompt with these or other pictures in it.
        pictures: RGB; or the frames of a video.
        tokens: how many visual tokens the prompt has, to compare.
        video: whether they go into the model as one video.

    Raises:
        ValueError: a picture of next to no pixels, or too many pictures; or tokens of which it
            cannot be told: they lie nowhere on the picture, as a resampler's, or the vision path
            is of another kind.
    """
    small = next((picture for picture in pictures if min(picture.size) < _LEAST), None)
    if small is not None:
        width, height = small.size
        raise ValueError(f"a picture of {width} x {height} pixels is too small to draw tokens on")
    path, count = VisionPath(config, video=video), len(pictures)
    if count > _MANY:
        raise ValueError(f"{count} pictures or frames are too many to draw: at most {_MANY}")
    step = (_BRIGHT - _DARK) // max(count - 1, 1)

    def shown(paint: Callable[[int, Image.Image], Image.Image]) -> tuple[torch.Tensor, Any]:
        inputs = process([paint(number, picture) for number, picture in enumerate(pictures)])
        return inputs[path.pixels(inputs)].float(), inputs

    def plain(grey: int) -> torch.Tensor:
        return shown(lambda number, picture: _plain(picture, grey))[0]

    black = plain(0)
    whole = plain(255).sub_(black)
    inside = whole.abs() > _NO_PIXEL
    scale = torch.where(inside, 255 / whole, 0)  # outside of a picture all is 0

    def fractions(pixels: torch.Tensor) -> torch.Tensor:
        """0..1 from the dark to the bright end."""
        grey = pixels.sub_(black).mul_(scale)
        return grey.sub_(_DARK).div_(_BRIGHT - _DARK).mul_(inside)

    def slope(axis: int) -> torch.Tensor:
        """Of a picture of few pixels several, that round in different places."""
        total = torch.zeros_like(black)
        for n in range(passes):
            phase = n / passes
            total += shown(lambda _, picture: _slope(picture, axis, phase))[0]  # noqa: B023
        return total / passes

    fewest = min(picture.size[0] * picture.size[1] for picture in pictures)
    passes = min(max(_PIXELS // fewest, 1), _PASSES)
    across, down, inputs = slope(0), slope(1), process(pictures)
    numbers = [fractions(across), fractions(down)]
    if not inside.all():
        numbers.append(inside.float())
    if count > 1:
        which = shown(lambda number, picture: _plain(picture, _DARK + step * number))[0]
        numbers.append(fractions(which))
    arrived = path.carry(inputs, numbers).numpy()
    if arrived.shape[1] != tokens:
        raise ValueError(
            f"the prompt has {tokens} visual tokens, its pictures make {arrived.shape[1]}: they "
            "cannot be drawn; are the processor's files this model's?"
        )
    seen = np.ones(tokens) if inside.all() else arrived[2]
    with np.errstate(invalid="ignore", divide="ignore"):
        x, y, *rest = np.where(seen > _SEEN, arrived / seen, np.nan)
    number = rest[-1] * (_BRIGHT - _DARK) / step if count > 1 else np.zeros(tokens)
    if np.isnan(x).all() or _all_alike(x, y):
        raise ValueError(
            "this model's visual tokens stand for no part of the picture: they cannot be drawn"
        )
    times = np.unique(number[~np.isnan(x)])
    starts = times[np.diff(times, prepend=-1) > _BETWEEN]
    shown_as = [pictures[int(time + _BETWEEN)] for time in starts]  # the first of several frames
    owners = np.searchsorted(starts, np.nan_to_num(number), "right") - 1
    what = f"{count} {'frames' if video else 'pictures'}" if count > 1 else ""
    return places_from(shown_as, owners, x, y, what)


def _all_alike(x: Any, y: Any) -> bool:
    return len(x) > 1 and float(np.nanmax(x) - np.nanmin(x) + np.nanmax(y) - np.nanmin(y)) < 1e-3


def _plain(picture: Image.Image, grey: int) -> Image.Image:
    return Image.new("RGB", picture.size, (grey, grey, grey))


def _slope(picture: Image.Image, axis: int, phase: float) -> Image.Image:
    """Brighter to the right (0) or downwards (1); dithered, so that means are exact.

    Pictures whose phases are evenly spread in 0..1 round every pixel to its mean.
    """
    width, height = picture.size
    side = picture.size[axis]
    line = _DARK + (_BRIGHT - _DARK) * (np.arange(side) + 0.5) / side
    line = line[None, :] if axis == 0 else line[:, None]
    # A sequence that fills the plane evenly: neighbours round differently.
    even = 0.7548776662 * np.arange(width)[None, :] + 0.5698402910 * np.arange(height)[:, None]
    thirds = (even[..., None] + phase + np.arange(3) / (3 * _PASSES)) % 1
    return Image.fromarray(np.floor(line[..., None] + thirds).astype(np.uint8))
