"""What may be looked at before the decoder: visual tokens, and what the tower made them of.

A selector chooses from pools: each picture by itself, or all of a prompt's together. Everything is
padded to the largest pool, and everything that is not in the tokens' embeddings already is made
when it is asked for, so that no method pays for what another needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

import torch

from st3.methods.budget import Piece, Pool
from st3.methods.clips import Clip


class Tower(Protocol):
    """What a vision tower did with the pictures, for G pools of at most n visual tokens."""

    def attention(self, layer: str) -> torch.Tensor:
        """Float32 [G, n]: attention that the patches of a token got there, mean over heads.

        From the class token, or, in a tower without one, from all patches of the picture on
        average. Infinite where a token stands for no patch, as at the end of a line.
        """

    def received(self, layer: str) -> torch.Tensor:
        """Float32 [G, n]: the same from all patches of the picture on average, always."""

    def joint(self, layer: str) -> torch.Tensor:
        """Float32 [G, n]: as `attention`, of all heads as one, by one softmax."""

    def keys(self, layer: str) -> torch.Tensor:
        """Float32 [G, n, heads, size]: keys there, mean over a token's patches; 0 where none."""

    def crops(self) -> torch.Tensor:
        """int64 [G, n]: the number of the crop that a token is of, counted through all pictures.

        -1 where it is of none, as at the end of a line.
        """

    def features(self) -> torch.Tensor:
        """Float32 [G, n, c]: what the projector gets, mean over a token's patches.

        As the last block leaves it: before a norm with which some towers end.
        """


@dataclass(frozen=True)
class View:
    """G pools of at most n visual tokens, in the order in which they stand in the prompt.

    Attributes:
        features: float [G, n, d], as the decoder would get them (after the projector).
        valid: bool [G, n], where there is a token.
        sizes: tokens of each pool. `counts`: how many of them are to stay.
        frames: makes int64 [G, n], the number of a token's frame or picture in its prompt.
        words: makes float [G, m, d], embeddings of the prompt's text, and bool [G, m], where there
            is any.
        grids: makes for each pool its lines and columns, where it is a picture of that shape whose
            tokens stand line by line; None where that is not known.
        look: makes what the tower did; raises ValueError where it was not seen.
        notes: what a method did otherwise than it would, a sentence each; for the report.
        films: of each pool its videos, in order, see `clips`; nothing where nobody asked.
        held: what `fixed` has made: a recording reads it at its address.
        pools: what each is made of: pictures and, where they are known, their marks; for a method
            that chooses by motion, videos and their frames.
        perhaps: notes of which only the device knows whether they hold: bool [...], a sentence.
    """

    features: torch.Tensor
    valid: torch.Tensor
    sizes: tuple[int, ...]
    counts: tuple[int, ...]
    frames: Callable[[], torch.Tensor]
    words: Callable[[], tuple[torch.Tensor, torch.Tensor]]
    grids: Callable[[], tuple[tuple[int, int] | None, ...]]
    look: Callable[[], Tower]
    notes: list[str] = field(default_factory=list)
    films: tuple[tuple[Clip, ...], ...] = ()
    pools: tuple[Pool, ...] = ()
    perhaps: list[tuple[torch.Tensor, str]] = field(default_factory=list)
    held: list[torch.Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.pools:
            object.__setattr__(self, "pools", tuple((Piece(size),) for size in self.sizes))

    @property
    def marks(self) -> tuple[int, ...]:
        """Tokens of each pool that are known to stand for no patch."""
        return tuple(sum(piece.marks for piece in pool) for pool in self.pools)

    @property
    def most(self) -> int:
        """The most tokens that stay in any pool."""
        return max(self.counts)

    @property
    def tower(self) -> Tower:
        """What the vision tower did."""
        return self.look()

    @property
    def frame(self) -> torch.Tensor:
        """int64 [G, n]: the number of a token's frame or picture in its prompt."""
        return self.frames()

    def clips(self) -> tuple[tuple[Clip, ...], ...]:
        """The videos of each pool, in order; a picture is one of one frame."""
        return self.films or tuple((Clip(0, 1, size),) for size in self.sizes)

    def units(self) -> torch.Tensor:
        """The features, of length 1, float32 [G, n, d]; zeros where there is no token."""
        return units(self.features, self.valid)

    def question(self) -> torch.Tensor:
        """The mean of the text's embeddings, float32 [G, d]; zeros where there is no text."""
        words, here = self.words()
        total = words.float().masked_fill(~here[..., None], 0).sum(1)
        return total / here.sum(1, keepdim=True).clamp_min(1)

    def fixed(self, numbers: Sequence[int]) -> torch.Tensor:
        """A number a pool that the host knows, int64 [G, 1] on the device."""
        return self.placed(numbers)[:, None]

    def placed(self, numbers: Sequence[int]) -> torch.Tensor:
        """Numbers that the host knows, int64 [n] on the device."""
        self.held.append(fixed(tuple(numbers), self.valid.device))
        return self.held[-1]

    def note(self, said: str, where: torch.Tensor | None = None) -> None:
        """Something for the report, once; only if `where`, bool [...], is true anywhere."""
        if where is not None:
            self.perhaps.append((where, said))
        elif said not in self.notes:
            self.notes.append(said)


def units(features: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Rows of length 1, float32 [G, n, d], of float [G, n, d]; zeros where not `valid` [G, n]."""
    wide = features.float().masked_fill(~valid[..., None], 0)
    return torch.nn.functional.normalize(wide, dim=-1)


@lru_cache(maxsize=64)
def fixed(numbers: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """int64 [n] on a device, where it stays: recorded prefills read it at its address."""
    pinned = torch.tensor(numbers, pin_memory=device.type == "cuda")
    return pinned.to(device, non_blocking=True)
