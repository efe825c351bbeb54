"""Opening pictures as a viewer would show them, whatever they are and wherever they come from."""

from __future__ import annotations

import http.client
import io
import sys
import time
import urllib.error
import urllib.request
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 100_000_000
MAX_BYTES = 50_000_000
TIMEOUT = 20.0
"""Seconds, for connecting, for each read, and for a whole download."""


class PictureError(ValueError):
    """A picture cannot be used; the message says why."""


def open_picture(source: str | Path) -> Image.Image:
    """Open a path, an http(s) URL, or `-` (standard input) as an upright RGB picture.

    EXIF rotation is applied, transparency lies on white, 16-bit and floating-point greys are scaled
    to 8 bits, an animation gives its first frame.

    Raises:
        PictureError: there is no usable picture there.
    """
    name = str(source)
    if name == "-":
        data = sys.stdin.buffer.read(MAX_BYTES + 1)
        name = "standard input"
    elif name.startswith(("http://", "https://")):
        data = _fetch(name)
    else:
        data = _read(Path(source))
    if not data:
        raise PictureError(f"{name} is empty")
    if len(data) > MAX_BYTES:
        raise PictureError(f"{name} is larger than {MAX_BYTES // 10**6} MB")
    return _decode(data, name)


def _read(path: Path) -> bytes:
    try:
        path = path.expanduser()
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        question = any(mark in str(path) for mark in " ?")
        hint = ": the picture comes first, then the prompt" if question else ""
        raise PictureError(f"there is no file {path}{hint}") from None
    except IsADirectoryError:
        raise PictureError(f"{path} is a folder: give a picture in it") from None
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PictureError(f"{path} cannot be read: {reason}") from None


def _fetch(url: str) -> bytes:
    deadline = time.monotonic() + TIMEOUT
    data = bytearray()
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "st3"})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            while chunk := response.read1(1 << 16):
                data += chunk
                if len(data) > MAX_BYTES:
                    break
                if time.monotonic() > deadline:
                    raise TimeoutError
    except TimeoutError:
        raise PictureError(f"{url} did not arrive within {TIMEOUT:g} s") from None
    except urllib.error.HTTPError as error:
        raise PictureError(f"{url} answers {error.code} {error.reason}") from None
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            raise PictureError(f"{url} did not arrive within {TIMEOUT:g} s") from None
        raise PictureError(f"{url} cannot be fetched: {reason}") from None
    return bytes(data)


def _decode(data: bytes, name: str) -> Image.Image:
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
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
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


def _to_rgb(image: Image.Image) -> Image.Image:
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
