"""New values of tokens, each a weighted sum of others: what merging is to the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Merge:
    """New values of tokens: each is the weighted sum of others, all within its pool.

    One sparse matrix a pool: row `into`, column `of`. A token that no `into` names keeps its value.
    What was merged stays where its `into` stood, and is merged in all that a model adds to tokens.

    Attributes:
        into, of: int64 [G, m], tokens of the pool: which one, and of what.
        weight: float [G, m], 0 where nothing is to be added.
    """

    into: torch.Tensor
    of: torch.Tensor
    weight: torch.Tensor


@dataclass(frozen=True)
class Part:
    """A part of one pool's matrix.

    Attributes:
        into, of: int64 [m]. `weight`: float32 [m].
    """

    into: torch.Tensor
    of: torch.Tensor
    weight: torch.Tensor
