"""A picture's tokens in a prompt: what the untrimmed one would hold, and which places stay.

Both sides go by it: the processor, which writes placeholders before anything is chosen, and the
model, which chooses as many rows. Plain torch, no vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import torch

from st3.methods.budget import Budget


@dataclass(frozen=True)
class Layout:
    """The stretch of an untrimmed prompt from a picture's first token to its last.

    Attributes:
        embeds: bool, one a token: whether it gets a row of the picture, or is text in between, as
            at the ends of lines.
        tile: rows that came as one tile, where the family counts tiles as pictures; 0: it does not.
        budget: what stays of each pool.
    """

    embeds: tuple[bool, ...]
    tile: int
    budget: Budget

    @classmethod
    def of(cls, embeds: torch.Tensor, tile: int, budget: Budget) -> Layout:
        """From bool [n], whatever stands before the first row and behind the last left out."""
        here = embeds.nonzero().flatten()
        if not len(here):
            return cls((), tile, budget)
        return cls(tuple(embeds[here[0] : here[-1] + 1].bool().tolist()), tile, budget)

    @cached_property
    def pools(self) -> tuple[int, ...]:
        """Rows of each choice: what lies together, by tiles where these count."""
        found: list[int] = []
        for embed, run in groupby(self.embeds):
            rest = sum(1 for _ in run) if embed else 0
            while self.tile and rest > self.tile:
                found.append(self.tile)
                rest -= self.tile
            if rest:
                found.append(rest)
        return tuple(found)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Rows of each pool that stay."""
        return tuple(self.budget.of(pool) for pool in self.pools)

    @property
    def total(self) -> tuple[int, int]:
        """Rows of the picture, and how many of them stay."""
        return sum(self.pools), sum(self.counts)

    @property
    def gone(self) -> int:
        """Tokens that the prompt is shorter by."""
        rows, kept = self.total
        return rows - kept

    @cached_property
    def rows(self) -> torch.Tensor:
        """int64 [rows], the place in the stretch of each row of the picture."""
        return torch.tensor(self.embeds, dtype=torch.bool).nonzero().flatten()

    @cached_property
    def stays(self) -> torch.Tensor:
        """int64 [n - gone], the places of the stretch for which the trimmed prompt has a token.

        All that is text; of each pool its first ones, which stand for whatever is chosen.
        """
        stays = ~torch.tensor(self.embeds, dtype=torch.bool)
        begin = 0
        for pool, count in zip(self.pools, self.counts, strict=True):
            stays[self.rows[begin : begin + count]] = True
            begin += pool
        return stays.nonzero().flatten()


@dataclass(frozen=True)
class Untrimmed:
    """A prompt as it would be if nothing had been trimmed.

    Attributes:
        tokens: its ids; those of pictures repeated.
        starts: where each picture's stretch begins in it.
        origin: int64 [trimmed tokens], the place in it of each token of the trimmed prompt; of a
            picture's rows that of the stretch, since which ones were chosen is not known here.
    """

    tokens: list[int]
    starts: list[int]
    origin: torch.Tensor


def untrimmed(tokens: Sequence[int], pictures: Sequence[tuple[int, Layout]]) -> Untrimmed:
    """Undo the trimming of a prompt.

    Args:
        tokens: ids of the trimmed prompt.
        pictures: in their order, where the stretch of each begins in it, and its layout.
    """
    made: list[int] = []
    origin: list[torch.Tensor] = []
    starts: list[int] = []
    done = 0
    for start, layout in pictures:
        origin.append(torch.arange(len(made), len(made) + start - done))
        made += tokens[done:start]
        starts.append(len(made))
        stays = layout.stays
        row = torch.tensor(layout.embeds, dtype=torch.bool)[stays]
        origin.append(len(made) + torch.where(row, 0, stays))
        whole = [tokens[start]] * len(layout.embeds)
        for place, token in zip(stays.tolist(), tokens[start:], strict=False):
            whole[place] = token
        made += whole
        done = start + len(stays)
    origin.append(torch.arange(len(made), len(made) + len(tokens) - done))
    made += tokens[done:]
    return Untrimmed(made, starts, torch.cat(origin))


_DIGIT = 256  # the whole numbers up to it are exact in bfloat16, too


def to_channels(places: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Whole numbers below 65,536, int64 [n, axes], as channels of rows [n, 2 axes], exactly."""
    return torch.cat((places // _DIGIT, places % _DIGIT), dim=1).to(dtype)


def from_channels(channels: torch.Tensor) -> torch.Tensor:
    """The same back: int64 [n, axes]."""
    high, low = channels.long().chunk(2, dim=1)
    return high * _DIGIT + low
