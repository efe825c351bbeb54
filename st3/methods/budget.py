"""How many visual tokens a selector leaves before the decoder: a share, a number, or as it finds.

Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

PER = ("picture", "prompt")
"""What a budget is spent on: each picture (tile, video) by itself, or all of a prompt together."""
SPARES = ("", "marks", "pictures")
"""What stays on top of a budget: nothing, what stands for no patch, or all that does not move."""


@dataclass(frozen=True)
class Piece:
    """What came as one: a picture, a tile, a video.

    Attributes:
        tokens: visual tokens.
        marks: of them, those that stand for no patch, such as at the ends of lines.
        frame: tokens of one frame; as many as `tokens` in a picture that may be a frame of a video,
            0 in one that is none.
    """

    tokens: int
    marks: int = 0
    frame: int = 0

    @property
    def moves(self) -> bool:
        """Whether it is a video of more than one frame."""
        return 0 < self.frame < self.tokens


Pool = tuple[Piece, ...]
"""What one choice is made of."""


def joined(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """The same with neighbours of one size that may be frames joined into a video."""
    found: list[Piece] = []
    for (_, single), run in groupby(pieces, key=lambda p: (p, p.frame == p.tokens)):
        same = [*run]
        found += [replace(same[0], tokens=len(same) * same[0].tokens)] if single else same
    return tuple(found)


@dataclass(frozen=True)
class Budget:
    """What stays of some visual tokens.

    Attributes:
        share: of them, in 0..1; or
        tokens: so many, or all where there are fewer; or
        adaptive: as many as the selector finds, which nobody knows before it has looked.
        per: one of `PER`.
        down: whether a share is rounded down (as some authors' code does), or to the nearest.
        spares: one of `SPARES`, what is not counted and stays. With `pictures`, as many tokens as a
            frame has stay of a video at least.

    Raises:
        ValueError: none or several of them, or one that leaves nothing.
    """

    share: float | None = None
    tokens: int | None = None
    per: str = "picture"
    down: bool = False
    spares: str = ""
    adaptive: bool = False

    def __post_init__(self) -> None:
        if [self.share is None, self.tokens is None, not self.adaptive].count(False) != 1:
            raise ValueError("a budget is a share, a number of tokens or adaptive, one of them")
        if self.tokens is not None and self.tokens < 1:
            raise ValueError(f"keep must be at least 1 token, got {self.tokens}")
        if self.share is not None and not 0 < self.share <= 1:
            raise ValueError(f"keep must be {_WHAT}; got {self.share:g}")
        if self.per not in PER:
            raise ValueError(f"per must be one of {', '.join(PER)}, got {self.per!r}")

    def of(self, tokens: int) -> int:
        """How many stay of one picture's, or one prompt's, tokens: at least 1 if there are any.

        An adaptive budget leaves all at most.
        """
        if self.adaptive:
            return tokens
        if self.tokens is not None:
            return min(self.tokens, tokens)
        assert self.share is not None
        exact = round(self.share * tokens, 9)  # 0.07 * 100 is above 7
        return min(tokens, max(1, math.floor(exact) if self.down else round(exact)))

    def of_pool(self, pool: Pool) -> int:
        """How many stay of what one choice is made of, what is spared among them."""
        spared = least = 0
        if self.spares == "marks":
            spared = sum(piece.marks for piece in pool)
        elif self.spares == "pictures":
            spared = sum(piece.tokens for piece in pool if not piece.frame)
            least = sum(piece.frame for piece in pool)
        rest = sum(piece.tokens for piece in pool) - spared
        return spared + min(rest, max(least, self.of(rest)))

    def of_pictures(self, pictures: Sequence[int | Piece]) -> tuple[int, ...]:
        """The same for each choice in a prompt of such pictures: one a picture, or one in all."""
        return tuple(self.of_pool(pool) for pool in self.pools(pictures))

    def pools(self, pictures: Sequence[int | Piece]) -> tuple[Pool, ...]:
        """What each choice is made of, in a prompt of such pieces, or pictures of such sizes."""
        pieces = tuple(Piece(x) if isinstance(x, int) else x for x in pictures)
        return tuple((piece,) for piece in pieces) if self.per == "picture" else (pieces,)

    def of_alike(self, tokens: int, pictures: int, like: Piece | None = None) -> int:
        """How many enter of a prompt's tokens, if they are of so many pictures of about one size.

        The first ones are as large as the others, or one token larger.

        Args:
            like: what each is known to be; otherwise pictures without marks, which may be frames.
        """
        each, rest = divmod(tokens, max(1, pictures))
        sizes = [each + 1] * rest + [each] * (max(1, pictures) - rest)
        single = like is None or like.frame == like.tokens
        known = like or Piece(each)
        pieces = [replace(known, tokens=n, frame=n if single else known.frame) for n in sizes]
        return sum(self.of_pictures(joined(pieces) if self.spares == "pictures" else pieces))


_WHAT = (
    "a share above 0 and up to 1, such as 0.11 or 11%, or a whole number of tokens, such as 64 (1 "
    "is one token; 1.0 or 100% is all)"
)
ALL = Budget(share=1.0)
"""Nothing leaves."""


def read_keep(keep: object) -> tuple[float | None, int | None]:
    """A share or a number of tokens, from what a caller gave: 0.11, "11%" or "0.11"; 64 or "64".

    Raises:
        ValueError: it is neither, or a share that cannot be.
    """
    share: float | None = None
    try:
        if isinstance(keep, str) and keep.isascii() and keep.lstrip("+-").isdecimal():
            return None, int(keep)
        if isinstance(keep, int) and not isinstance(keep, bool):
            return None, keep
        if isinstance(keep, str):
            # Shifted as text: 33.4 / 100 is not 0.334
            share = float(f"{keep[:-1]}e-2") if keep.endswith("%") else float(keep)
            share = share if keep.isascii() else None
        elif isinstance(keep, float):
            share = keep
    except ValueError:
        pass
    if share is None or not 0 < share <= 1:
        raise ValueError(f"keep must be {_WHAT}; got {keep}")
    return share, None
