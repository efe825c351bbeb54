"""Opening pictures as a viewer would show them, and bounding what a processor makes of them."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from st3.inference.sources import PictureError, read_source

__all__ = ["PictureError", "check_processed", "open_picture"]

MAX_PIXELS = 100_000_000
MAX_PROCESSED_PIXELS = 25_000_000
"""As many as a processor may make of a picture that has fewer."""


def open_picture(source: str | Path) -> Image.Image:
    """Open a path, a URL (http, https, file, data) or `-` (standard input): upright, in RGB.

    EXIF rotation is applied, transparency lies on white, 16-bit and floating-point greys are scaled
    to 8 bits, an animation gives its first frame.

    Raises:
        PictureError: there is no usable picture there.
    """
    return decode_picture(*read_source(source))


def check_processed(picture: Image.Image, image_processor: Any) -> None:
    """See that an image processor of transformers will not blow a picture up.

    One that scales the shortest edge to a given length makes the other as much longer as the
    picture is narrow, and one that pads to a square does the same to the shorter. Where
    `longest_edge` is given as well, the processor has a bound of its own (of the edge, or in some
    families of the area).

    Raises:
        PictureError: it would get many more pixels than it has, or none.
    """
    width, height = made = picture.size
    if getattr(image_processor, "do_pad", False) and hasattr(image_processor, "pad_to_square"):
        made = (max(made), max(made))
    size: Any = getattr(getattr(image_processor, "size", None), "get", {}.get)
    shortest = size("shortest_edge") if getattr(image_processor, "do_resize", True) else None
    longest = size("longest_edge")
    if shortest and longest and max(made) > longest * min(made):
        made = (longest, 0) if width > height else (0, longest)
    elif shortest and not longest and min(made) < shortest:
        made = (made[0] * shortest // min(made), made[1] * shortest // min(made))
    area = made[0] * made[1]
    if not area or area > max(MAX_PROCESSED_PIXELS, 2 * width * height):
        raise PictureError(
            f"the picture has {width} x {height} pixels, of which this model's processor would "
            f"make {made[0]} x {made[1]}: crop it to a part that is less narrow"
        )


def decode_picture(data: bytes, name: str) -> Image.Image:
    """The same from bytes, which messages call `name`."""
    with _opened(data, name) as image:
        image.load()
        return to_rgb(ImageOps.exif_transpose(image))


def measure_picture(data: bytes, name: str) -> tuple[int, int]:
    """Width and height that a picture claims to have; nothing is decoded.

    Raises:
        PictureError: it is none, or too large.
    """
    with _opened(data, name) as image:
        return image.size


@contextmanager
def _opened(data: bytes, name: str) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # bombs are refused below; the rest is for programmers
            image = Image.open(io.BytesIO(data))
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise PictureError(
                    f"{name} has {width} x {height} pixels, more than {MAX_PIXELS // 10**6} "
                    "million: scale it down"
                )
            yield image
    except UnidentifiedImageError:
        raise PictureError(f"{name} is not a picture that Pillow can read") from None
    except Image.DecompressionBombError:
        raise PictureError(
            f"{name} unpacks to more than {MAX_PIXELS // 10**6} million pixels: scale it down"
        ) from None
    except PictureError:
        raise
    except Exception as error:  # decoders raise whatever they stumble over
        raise PictureError(f"{name} is a damaged picture: {error}") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode in RGB of 8 bits, on white."""
    if image.mode in {"F", "I"} or image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.float64)
        low, high = float(np.nanmin(grey)), float(np.nanmax(grey))
        if image.mode == "F":
            scale = 255.0 if low >= 0 and high <= 1 else 1.0
        else:
            scale = 255 / 65535 if high > 255 else 1.0
        grey = np.nan_to_num(grey * scale).clip(0, 255)
        image = Image.fromarray(grey.round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
