"""Where videos lie in a pool of visual tokens. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from st3.methods.budget import Piece


@dataclass(frozen=True)
class Clip:
    """A video's frames in a pool: as many tokens each, end to end.

    Attributes:
        first: number in the pool of the first token. `frames`: how many. `size`: tokens of each.
    """

    first: int
    frames: int
    size: int

    @property
    def tokens(self) -> int:
        """Of all frames."""
        return self.frames * self.size

    @property
    def inside(self) -> slice:
        """Its tokens in the pool."""
        return slice(self.first, self.first + self.tokens)


def clips_of(pieces: Sequence[Piece]) -> list[Clip]:
    """A prompt's videos; a picture is one of one frame.

    What is left behind a video's last whole frame is of none, such as the mark at its end.
    """
    found, first = [], 0
    for piece in pieces:
        size = piece.frame or piece.tokens
        found.append(Clip(first, piece.tokens // size, size))
        first += piece.tokens
    return found


def in_pools(clips: Sequence[Clip], sizes: Sequence[int]) -> list[tuple[Clip, ...]]:
    """A prompt's videos in pools of these sizes, which follow each other and divide no frame."""
    pools, first = [], 0
    for size in sizes:
        inside = []
        for clip in clips:
            begin = max(0, -(-(first - clip.first) // clip.size))
            end = min(clip.frames, (first + size - clip.first) // clip.size)
            if begin < end:
                place = clip.first + begin * clip.size - first
                inside.append(Clip(place, end - begin, clip.size))
        pools.append(tuple(inside))
        first += size
    return pools
