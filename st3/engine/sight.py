"""What a method asks to see of the vision tower, and what was seen of it."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

OF_LAYERS = ("attention", "joint", "received", "keys")
"""What can be asked of a layer."""
OF_ITS_OWN = "its vision tower hands features on in a form of its own"


@dataclass
class Sight:
    """What was seen of the pictures, or videos, of one call.

    Attributes:
        lengths: visual tokens of each. `grids`: lines and columns of these, where known.
        marks: of each picture, tokens that stand for no patch. `films`: of each video, its tokens
            and those of a frame; nothing where that is not known.
        attention: what a method asked for -> float32 [tokens].
        crops: int64 [tokens], the number of the crop that each is of, counted through; -1 where it
            is of none, such as marks at the ends of lines.
        keys: the same -> float32 [tokens, heads, size].
        features: float32 [tokens, c], what the projector gets; None if nobody asked.
        class_token: whether attention is that of a class token.
        moved: whether another block was looked at than asked for, because that one has windows.
        trouble: why nothing else was seen.
        made: what the call returned, while somebody holds it.
    """

    lengths: list[int] = field(default_factory=list)
    grids: list[tuple[int, int]] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    films: list[tuple[int, int]] = field(default_factory=list)
    attention: dict[str, torch.Tensor] = field(default_factory=dict)
    keys: dict[str, torch.Tensor] = field(default_factory=dict)
    features: torch.Tensor | None = None
    crops: torch.Tensor | None = None
    class_token: bool = False
    moved: bool = False
    trouble: str = ""
    made: weakref.ref[Any] | None = None


@dataclass(frozen=True)
class Wish:
    """What a method wants to see.

    Attributes:
        layers: `attention LAYER` or `joint LAYER`, from the class token if there is one, `received
            LAYER`, from all patches, or `keys LAYER`; see `TowerWatch.block`.
        features: what the projector gets. `grids`: shapes of pictures.
    """

    layers: tuple[str, ...] = ()
    features: bool = False
    grids: bool = False

    @classmethod
    def of(cls, needs: Sequence[str]) -> Wish:
        """From what a selector needs, such as `patches` and `grid`."""
        layers = tuple(x for x in needs if x.partition(" ")[0] in OF_LAYERS)
        return cls(layers, "patches" in needs, "grid" in needs or bool(layers))

    @property
    def any(self) -> bool:
        """Whether the tower must be watched at all."""
        return bool(self.layers) or self.features or self.grids
