"""How many visual tokens a selector leaves before the decoder: a share, a number, or as it finds.

Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

PER = ("picture", "prompt")
"""What a budget is spent on: each picture (tile, video) by itself, or all of a prompt together."""


@dataclass(frozen=True)
class Budget:
    """What stays of some visual tokens.

    Attributes:
        share: of them, in 0..1; or
        tokens: so many, or all where there are fewer; or
        adaptive: as many as the selector finds, which nobody knows before it has looked.
        per: one of `PER`.
        down: whether a share is rounded down (as some authors' code does), or to the nearest.

    Raises:
        ValueError: none or several of them, or one that leaves nothing.
    """

    share: float | None = None
    tokens: int | None = None
    per: str = "picture"
    down: bool = False
    adaptive: bool = False

    def __post_init__(self) -> None:
        if [self.share is None, self.tokens is None, not self.adaptive].count(False) != 1:
            raise ValueError("a budget is a share, a number of tokens or adaptive, one of them")
        if self.tokens is not None and self.tokens < 1:
            raise ValueError(f"keep must be at least 1 token, got {self.tokens}")
        if self.share is not None and not 0 < self.share <= 1:
            raise ValueError(
                f"keep must be a share above 0 and up to 1, such as 0.11 or 11%, or a whole number "
                f"of tokens, such as 64; got {self.share:g}"
            )
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

    def of_pictures(self, pictures: Sequence[int]) -> tuple[int, ...]:
        """The same for each choice in a prompt of such pictures: one a picture, or one in all."""
        return tuple(self.of(tokens) for tokens in self.pools(pictures))

    def pools(self, pictures: Sequence[int]) -> tuple[int, ...]:
        """Of how many tokens each choice is made."""
        return tuple(pictures) if self.per == "picture" else (sum(pictures),)

    def of_alike(self, tokens: int, pictures: int) -> int:
        """How many enter of a prompt's tokens, if they are of so many pictures of about one size.

        The first ones are as large as the others, or one token larger.
        """
        each, rest = divmod(tokens, max(1, pictures))
        sizes = [each + 1] * rest + [each] * (max(1, pictures) - rest)
        return sum(self.of_pictures(sizes))


ALL = Budget(share=1.0)
"""Nothing leaves."""


def read_keep(keep: object) -> tuple[float | None, int | None]:
    """A share or a number of tokens, from what a caller gave: 0.11, "11%" or "0.11"; 64 or "64".

    Raises:
        ValueError: it is neither.
    """
    try:
        if isinstance(keep, str):
            if keep.endswith("%"):
                return float(keep[:-1]) / 100, None
            return (None, int(keep)) if keep.lstrip("+-").isdecimal() else (float(keep), None)
        if isinstance(keep, int) and not isinstance(keep, bool):
            return None, keep
        if isinstance(keep, float):
            return keep, None
    except ValueError:
        pass
    raise ValueError(
        f"keep must be a share, such as 0.11 or 11%, or a whole number of tokens, such as 64; "
        f"got {keep!r}"
    )
