"""FEATHER: attention without positions, and a grid that the first cut leaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from st3.methods.deciding import Deciding
from st3.methods.dial import Dial
from st3.methods.schedule import Schedule, tidy

if TYPE_CHECKING:
    import torch

    from st3.methods.scorers import LayerView


@dataclass(frozen=True)
class Feather(Deciding):
    """Two late cuts by attention without rotary positions; the first leaves an even grid as well.

    Endo et al., *Feather the Throttle: Revisiting Visual Token Pruning for Vision-Language Model
    Acceleration*, ICCV 2025. Of n tokens the first cut leaves every `stride`-th of every
    `stride`-th line, and the best of the others; the second leaves a share f^2 of what is there.
    Queries and keys of either layer are computed once more, without positions.

    Attributes:
        first, second: layers that decide; None: a quarter and a half of the depth (8 and 16 of 32).
        f: the share that attention keeps.
        stride: of the grid.
    """

    name: ClassVar[str] = "feather"
    source: ClassVar[str] = "FEATHER, arXiv 2412.13180"
    needs: ClassVar[tuple[str, ...]] = ("unrotated", "cells")
    across_ranks: ClassVar[bool] = True
    differs: ClassVar[str] = (
        "the first cut leaves f + (1 - f) / stride^2, what the union of grid and best tokens has "
        "on average; the authors' has a number that depends on the picture. Grids of any shape, "
        "one for each picture"
    )

    dial: ClassVar[Dial | None] = Dial("f", 0.0, 1.0)

    first: int | None = None
    second: int | None = None
    f: float = 0.3
    stride: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.f <= 1:
            raise ValueError(f"feather: f must lie between 0 and 1, got {self.f:g}")
        if self.stride < 1:
            raise ValueError(f"feather: stride must be at least 1, got {self.stride}")

    def schedule(self, layers: int) -> Schedule:
        first, second = self._cuts(layers)
        if not 1 <= first < second < layers:
            raise ValueError(
                f"feather: layers must be 1 <= first < second < {layers}, got {first} and {second}"
            )
        kept = tidy(self.f + (1 - self.f) / self.stride**2)
        less = tidy(kept * self.f**2)
        keeps = (1.0,) * first + (kept,) * (second - first) + (less,) * (layers - second)
        return Schedule(keeps)

    def settings(self, layers: int) -> dict[str, Any]:
        first, second = self._cuts(layers)
        return super().settings(layers) | {"first": first, "second": second}

    def _cuts(self, layers: int) -> tuple[int, int]:
        first = max(1, layers // 4) if self.first is None else self.first
        second = max(first + 1, layers // 2) if self.second is None else self.second
        return first, second

    def score(self, view: LayerView) -> torch.Tensor:
        from st3.methods.unrotated import unrotated_attention

        score = unrotated_attention(view)
        if view.cut > 1:
            return score
        cells = view.look.cells() % self.stride
        return score + 2.0 * (cells == 0).all(-1)  # attention is at most 1


METHOD = Feather
