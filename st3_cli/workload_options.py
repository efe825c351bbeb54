"""What `st3 profile` asks of a model: weights, pictures or a video, tokens, batches."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import typer

from st3_cli import options as o

WORK = "Workload"
TOKENS: dict[str, Any] = {"min": 1, "callback": o.at_most(10**6)}


class Weights(StrEnum):
    """What to time."""

    auto = "auto"
    random = "random"
    pretrained = "pretrained"


def batch_sizes(text: str) -> list[int]:
    """Batch sizes: 1,8."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"{text!r}: give whole numbers from 1 on, e.g. 8 or 1,8,32")
    return list(dict.fromkeys(int(part) for part in parts))


def pixels(text: str) -> tuple[int, int]:
    """Pixels: 1344x896."""
    from st3.inference.pictures import MAX_PIXELS

    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.strip().isdecimal() and int(side) > 0 for side in sides):
        raise typer.BadParameter(f"{text!r}: give width x height in pixels, e.g. 1344x896")
    width, height = (int(side) for side in sides)
    if width * height > MAX_PIXELS:
        raise typer.BadParameter(f"{text!r}: more than {MAX_PIXELS // 10**6} million pixels")
    return width, height


def film(text: str) -> tuple[int, tuple[int, int]]:
    """Frames and their pixels: 64x448x448."""
    from st3.inference.videos import MAX_BYTES

    frames, _, sides = text.lower().partition("x")
    if not (frames.strip().isdecimal() and int(frames) > 0 and "x" in sides):
        raise typer.BadParameter(f"{text!r}: give frames x width x height, e.g. 64x448x448")
    size = pixels(sides)
    if 3 * int(frames) * size[0] * size[1] > MAX_BYTES:
        raise typer.BadParameter(f"{text!r}: its frames are more than {MAX_BYTES // 10**9} GB")
    return int(frames), size


def number(help: str, **more: Any) -> Any:
    """An option that takes a number."""
    return o.option(WORK, help=help, metavar="N", **more)
