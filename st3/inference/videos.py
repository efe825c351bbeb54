"""Videos: which of their frames are taken, and these as pictures with their times.

A `Video` knows its frames and decodes none of them before `take`, and then those alone that are
asked for. `st3.inference.video_files` opens one.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from PIL import Image

__all__ = ["Clip", "Video", "VideoError", "spread"]

MAX_BYTES = 4_000_000_000
"""That the frames which are taken may need, at three a pixel."""


class VideoError(ValueError):
    """A video cannot be used; the message says why."""


@dataclass(frozen=True)
class Clip:
    """Frames of a video.

    Attributes:
        name: where they came from.
        frames: RGB, of one size.
        indices: their numbers in the video, from 0, rising; some may be there twice.
        seconds: when each is shown, from the video's first frame on.
        total: how many frames the video has.
        fps: how many of them it shows in a second, on average.
    """

    name: str
    frames: tuple[Image.Image, ...]
    indices: tuple[int, ...]
    seconds: tuple[float, ...]
    total: int
    fps: float

    def some(self, count: int) -> Clip:
        """The same with so many of its frames, evenly spread."""
        taken = spread(len(self.frames), count)
        return replace(
            self,
            frames=tuple(self.frames[n] for n in taken),
            indices=tuple(self.indices[n] for n in taken),
            seconds=tuple(self.seconds[n] for n in taken),
        )


@dataclass(frozen=True)
class Video:
    """A video of which nothing is decoded yet.

    Attributes:
        name: where it lies.
        seconds: when each of its frames is shown, from 0, rising.
        fps: how many it shows in a second, on average.
        size: width and height in pixels.
        timed: whether it tells these times itself.
        decode: the frames of these numbers, which rise, one after the other, RGB.
    """

    name: str
    seconds: tuple[float, ...]
    fps: float
    size: tuple[int, int]
    timed: bool
    decode: Callable[[Sequence[int]], Iterator[Image.Image]]

    @property
    def total(self) -> int:
        """How many frames it has."""
        return len(self.seconds)

    def evenly(self, count: int) -> list[int]:
        """Numbers of so many frames, evenly spread.

        Raises:
            VideoError: it has fewer.
        """
        if count > self.total:
            raise VideoError(
                f"{self.name} has {self.total} frame{'s' * (self.total > 1)}, not {count}: give "
                f"--frames {self.total} at most"
            )
        return spread(self.total, count)

    def every(self, fps: float) -> list[int]:
        """Numbers of the frames that are on show so many times a second, each once.

        Raises:
            VideoError: no such rate, or the video has no times.
        """
        if not (fps > 0 and math.isfinite(fps)):
            raise VideoError(f"--fps {fps:g}: give a number above 0")
        if not self.timed:
            raise VideoError(f"{self.name} has no times, so --fps says nothing: give --frames")
        if fps >= self.fps:
            return list(range(self.total))
        ticks = int(self.seconds[-1] * fps + 1e-6) + 1
        # A tick that falls on a frame's own time is that frame's, whatever rounding makes of it.
        shown = (bisect.bisect_right(self.seconds, n / fps + 1e-6) - 1 for n in range(ticks))
        return sorted(set(shown))

    def take(
        self, indices: Iterable[int], on_frame: Callable[[int, int], None] | None = None
    ) -> Clip:
        """Decode these frames.

        Args:
            indices: their numbers, rising; some checkpoints take one several times.
            on_frame: is told how many are done, of how many.

        Raises:
            VideoError: they cannot be decoded, are of different sizes, or take too much memory.
        """
        wanted = tuple(indices)
        width, height = self.size
        most = max(1, MAX_BYTES // (3 * width * height))
        if len(wanted) > most:
            raise VideoError(
                f"{len(wanted)} frames of {width} x {height} pixels are more than "
                f"{MAX_BYTES // 10**9} GB: give --frames {most} at most, or scale the video down"
            )
        found: dict[int, Image.Image] = {}
        once = sorted(set(wanted))
        for index, frame in zip(once, self.decode(once), strict=True):
            found[index] = frame
            if on_frame is not None:
                on_frame(len(found), len(once))
        frames = tuple(found[index] for index in wanted)
        seconds = tuple(self.seconds[index] for index in wanted)
        return Clip(self.name, frames, wanted, seconds, self.total, self.fps)


def spread(total: int, count: int) -> list[int]:
    """Of `total` frames the first in each of `count` equal parts, as transformers spreads them."""
    return [number * total // count for number in range(count)]
