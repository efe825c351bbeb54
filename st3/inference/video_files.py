"""Opening videos: films by PyAV; animations (GIF, WebP) and folders of frames by Pillow alone."""

from __future__ import annotations

import io
import mimetypes
import re
import warnings
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from PIL import Image

from st3.inference.film import open_film
from st3.inference.pictures import MAX_PIXELS, decode_picture, open_picture, to_rgb
from st3.inference.sources import PictureError, local_path, read_source
from st3.inference.videos import Video, VideoError

FOLDER_FPS = 2.0
"""Frames of a folder have no times: they are taken to follow each other so fast, a convention of
Qwen's tools."""
_FRAMES = {".jpg", ".jpeg", ".png", ".webp"}
_ANIMATED = {"GIF", "WEBP", "PNG", "AVIF"}
_STILL = 0.1  # seconds of a frame that tells no duration
_BARE = {".ts", ".mts", ".m2ts", ".h264", ".264", ".h265", ".265", ".hevc", ".ivf", ".y4m", ".m4v"}
"""Videos that neither their first bytes nor every machine's list of endings tell."""
_HEAD = 64  # bytes that tell what a file is
_MAGIC = re.compile(
    rb"....ftyp(?!avi[fs]|heic|heix|mif1|msf1)|\x1aE\xdf\xa3|RIFF....AVI |FLV\x01|OggS"
    rb"|\x00\x00\x01[\xba\xb3]|\x30\x26\xb2\x75\x8e\x66\xcf\x11",
    re.DOTALL,
)
"""MP4 and QuickTime, Matroska and WebM, AVI, Flash, Ogg, MPEG, Windows Media."""


def open_visual(source: str | Path) -> Image.Image | Video:
    """Open a picture or a video: a path, a folder of frames, a URL or `-` (standard input).

    Raises:
        PictureError: there is neither, or a picture that cannot be used.
        VideoError: a video that cannot be used; or PyAV is missing.
    """
    path = local_path(source)
    if path is not None and path.is_dir():
        return _open_folder(path)
    file: Any = path
    head, name = _head(path), str(source)
    if head is None:  # a URL, a pipe, or nothing: which is said there
        file, name = read_source(source)
        head = file[:_HEAD]
    kind = _animation(file)
    if kind is not None:
        return _open_animation(file, name)
    if _is_film(head, name):
        return open_film(file, name)
    try:
        return open_picture(source) if file is path else decode_picture(file, name)
    except PictureError as error:
        if "not a picture" in str(error):
            raise PictureError(f"{error}, nor a video") from None
        raise


def _head(path: Path | None) -> bytes | None:
    """What a file begins with, if it is one that can be read."""
    try:
        if path is None or not path.is_file():
            return None
        with path.open("rb") as opened:
            return opened.read(_HEAD)
    except (OSError, ValueError):
        return None


def _is_film(head: bytes, name: str) -> bool:
    """By its first bytes, or by the end of its name if these are no picture's."""
    known = (mimetypes.guess_type(name)[0] or "").startswith("video/")
    return _MAGIC.match(head) is not None or known or Path(name).suffix.lower() in _BARE


def _stream(file: Any) -> Any:
    return io.BytesIO(file) if isinstance(file, bytes) else file


def _animation(file: Any) -> str | None:
    """The format of a picture that moves; None of any other file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes, which are refused elsewhere
            with Image.open(_stream(file)) as image:
                moves = image.format in _ANIMATED and getattr(image, "n_frames", 1) > 1
                return image.format if moves else None
    except Exception:  # whatever it is, others say what is wrong with it
        return None


def _open_animation(file: Any, name: str) -> Video:
    try:
        with Image.open(_stream(file)) as image:
            size = image.size
            if size[0] * size[1] > MAX_PIXELS:
                raise VideoError(f"{name} has {size[0]} x {size[1]} pixels a frame: scale it down")
            lasting = []
            for number in range(image.n_frames):  # type: ignore[attr-defined]
                image.seek(number)
                image.load()  # some tell a frame's duration then
                lasting.append(image.info.get("duration", 0) / 1000 or _STILL)
    except VideoError:
        raise
    except Exception as error:  # decoders raise whatever they stumble over
        raise VideoError(f"{name} is a damaged animation: {error}") from None

    def decode(indices: Sequence[int]) -> Iterator[Image.Image]:
        with Image.open(_stream(file)) as moving:
            for index in indices:
                moving.seek(index)
                yield to_rgb(moving)

    starts = (0.0, *accumulate(lasting))
    return Video(name, starts[:-1], len(lasting) / starts[-1], size, True, decode)


def _open_folder(folder: Path) -> Video:
    try:
        files = sorted(
            (
                file for file in folder.iterdir()
                if file.suffix.lower() in _FRAMES and not file.name.startswith(".")
            ),
            key=lambda file: _natural(file.name),
        )  # fmt: skip
    except OSError as error:
        raise VideoError(f"{folder} cannot be read: {error.strerror}") from None
    if not files:
        raise VideoError(f"{folder} is a folder without frames: give one with jpg or png files")
    size = open_picture(files[0]).size

    def decode(indices: Sequence[int]) -> Iterator[Image.Image]:
        for index in indices:
            frame = open_picture(files[index])
            if frame.size != size:
                raise VideoError(
                    f"frames of a video have one size: {files[0]} has {size[0]} x {size[1]} "
                    f"pixels, {files[index].name} {frame.width} x {frame.height}; pictures that "
                    "are none are given one by one"
                )
            yield frame

    seconds = tuple(number / FOLDER_FPS for number in range(len(files)))
    return Video(str(folder), seconds, FOLDER_FPS, size, False, decode)


def _natural(name: str) -> list[Any]:
    """As people count: frame2 before frame10."""
    parts = re.split(r"([0-9]+)", name.lower())
    return [int(part) if number % 2 else part for number, part in enumerate(parts)]
