"""Films (MP4, WebM, MKV, AVI, ...) by PyAV: all frames are counted, few are decoded.

The packets of a file tell how many frames it has, when each is shown and which can be decoded
without others. So a frame is reached from the one of these before it.
"""

from __future__ import annotations

import bisect
import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from st3.inference.videos import Video, VideoError


def open_film(file: Path | bytes, name: str) -> Video:
    """Count the frames of a file, or of its bytes.

    Raises:
        VideoError: PyAV is missing, or there is no video in the file that it can decode.
    """
    with _opened(file, name) as (container, stream):
        packets = [
            packet
            for packet in container.demux(stream)
            if packet.size and not getattr(packet, "is_discard", False)
        ]
        base, rate = stream.time_base, float(stream.average_rate or 25)
        times = [packet.pts for packet in packets]
        keys = sorted(p.pts for p in packets if p.is_keyframe and p.pts is not None)
    with _opened(file, name) as (container, stream):
        first = _Reader(container, stream).number(0)
    if first is None:
        raise VideoError(f"{name} has no frame that can be decoded")
    size = first.size
    if None in times or len(set(times)) < len(times) or not keys:  # a bare stream, as of a camera
        marks: list[int] | None = None
        seconds = tuple(number / rate for number in range(len(times)))
    else:
        marks = sorted(times)
        seconds = tuple(float((mark - marks[0]) * base) for mark in marks)
        if len(marks) > 1:
            rate = (len(marks) - 1) / seconds[-1]

    def decode(indices: Sequence[int]) -> Iterator[Image.Image]:
        with _opened(file, name) as (container, stream):
            reader = _Reader(container, stream)
            for index in indices:
                frame = (
                    reader.number(index) if marks is None else reader.at(marks[index], marks, keys)
                )
                if frame is None:
                    raise VideoError(
                        f"{name} is damaged: its frame {index + 1} of {len(times)}, at "
                        f"{seconds[index]:.1f} s, cannot be decoded"
                    )
                yield frame

    return Video(name, seconds, rate, size, True, decode)


@contextmanager
def _opened(file: Path | bytes, name: str) -> Iterator[tuple[Any, Any]]:
    """A container and its video stream; whatever goes wrong with them in one line."""
    try:
        import av
    except ImportError:
        raise VideoError(
            f"{name} is a video, and PyAV, which decodes it, is missing: pip install 'st3[video]'"
        ) from None
    try:
        source: Any = io.BytesIO(file) if isinstance(file, bytes) else str(file.absolute())
        # What looks like a film may be a playlist, which would have others opened from anywhere.
        allowed = "none" if isinstance(file, bytes) else "file"
        with av.open(source, options={"protocol_whitelist": allowed}) as container:
            stream = next(iter(container.streams.video), None)
            if stream is None:
                raise VideoError(f"{name} has sound, and no pictures")
            stream.thread_type = "AUTO"
            yield container, stream
    except VideoError:
        raise
    except Exception as error:  # decoders raise whatever they stumble over
        what = getattr(error, "strerror", None) or error
        raise VideoError(f"{name} is no video that PyAV can decode: {what}") from None


class _Reader:
    """Goes through a stream's frames."""

    def __init__(self, container: Any, stream: Any) -> None:
        self._container, self._stream = container, stream
        self._frames: Any = container.decode(stream)
        self._passed = 0
        self._at: float = -math.inf

    def number(self, index: int) -> Image.Image | None:
        """A frame by its number, where frames have no times; numbers rise."""
        for frame in self._frames:
            self._passed += 1
            if self._passed > index:
                return _picture(frame)
        return None

    def at(self, mark: int, marks: Sequence[int], keys: Sequence[int]) -> Image.Image | None:
        """The frame that is shown at a time, in the stream's unit; None if there is none."""
        key = keys[max(bisect.bisect_right(keys, mark) - 1, 0)]
        ahead = key <= self._at < mark or (self._at < marks[0] and key == keys[0])
        frame = self._forward(mark) if ahead else self._from(key, mark, stream=self._stream)
        # Some indices lead past it: once more, from the beginning.
        return frame or self._from(0, mark)

    def _from(self, start: int, mark: int, **unit: Any) -> Image.Image | None:
        self._container.seek(start, **unit)
        self._frames = self._container.decode(self._stream)
        return self._forward(mark)

    def _forward(self, mark: int) -> Image.Image | None:
        for frame in self._frames:
            self._at = frame.pts
            if frame.pts >= mark:
                return _picture(frame) if frame.pts == mark else None
        return None


def _picture(frame: Any) -> Image.Image:
    """Upright, as a phone means it."""
    pixels = frame.to_ndarray(format="rgb24")
    turns = round(getattr(frame, "rotation", 0) / 90)
    return Image.fromarray(np.ascontiguousarray(np.rot90(pixels, turns)))
