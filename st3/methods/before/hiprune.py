"""HiPrune: anchors, their neighbours, and registers, by two layers of the tower."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from st3.methods.selecting import Chosen, Selecting

if TYPE_CHECKING:
    from st3.methods.view import View

_FIRST = 8.0


@dataclass(frozen=True)
class HiPrune(Selecting):
    """What middle layers of the tower look at, its neighbours, and what deep layers look at.

    *HiPrune*, arXiv 2508.00553. Anchors: the best in an object layer; buffers: their neighbours
    left, right, above and below; registers: of the rest the best in a deep layer. Attention that a
    patch gets from all others. A set: the number of anchors follows from the budget.

    Attributes:
        alpha: share of the budget for anchors and buffers.
        object_layer: of the tower, as a share of its depth; 0.375 is the 9th of 24.
    """

    name: ClassVar[str] = "hiprune"
    source: ClassVar[str] = "HiPrune, arXiv 2508.00553"
    needs: ClassVar[tuple[str, ...]] = ("received features", "received 0.375", "grid")
    is_set: ClassVar[bool] = True
    differs: ClassVar[str] = (
        "tiles of a picture share its budget, theirs get the same each, and where they are packed, "
        "neighbours are those left and right alone; in towers with windows a layer is the next one "
        "that sees a whole picture; marks at the ends of lines stay on top of the budget, which is "
        "of patches as theirs is"
    )
    spares: ClassVar[str] = "marks"
    published: ClassVar[Mapping[str, str]] = {
        "192": "keep=192",
        "128": "keep=128",
        "64": "keep=64",
        "next-640": "keep=640",
        "next-320": "keep=320",
        "next-160": "keep=160",
        "qwen-1/3": "keep=33.4%,object_layer=0.5",
        "qwen-2/9": "keep=22.3%,object_layer=0.5",
        "qwen-1/9": "keep=11.2%,object_layer=0.5",
    }

    alpha: float = 0.1
    object_layer: float = 0.375

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"hiprune: alpha must be a share, got {self.alpha:g}")
        if not 0 < self.object_layer <= 1:
            raise ValueError(
                f"hiprune: object_layer is a share of the tower's depth, got {self.object_layer:g}"
            )

    def asks(self) -> tuple[str, ...]:
        return "received features", f"received {self.object_layer:g}", "grid"

    def choose(self, view: View) -> Chosen:
        import torch

        from st3.methods.greedy import ranked

        tower, valid = view.tower, view.valid
        middle = tower.received(f"{self.object_layer:g}")
        seen = tower.received("features")
        deep = seen.clamp_max(1).masked_fill(~valid, 0)
        patches = (count - marks for count, marks in zip(view.counts, view.marks, strict=True))
        many = [round(count * self.alpha / 5) for count in patches]
        anchors = ranked(middle.masked_fill(middle.isinf(), -1), valid, max(1, *many))
        number = torch.arange(anchors.shape[1], device=valid.device)
        wanted = number < view.fixed(many)
        standing = deep.double()  # attention: at most 1
        grids = view.grids()
        if None in grids:
            view.note("no grid of tokens: neighbours left and right alone")
        wide = view.fixed([1 if grid is None else grid[1] for grid in grids])
        last = view.fixed(view.sizes) - 1
        for step, bonus in ((0, 4.0), (-1, 2.0), (1, 2.0), (-wide, 2.0), (wide, 2.0)):
            near = (anchors + step).clamp_min(0).minimum(last)
            marked = torch.zeros_like(standing).scatter_reduce_(
                1, near, wanted.double() * bonus, "amax"
            )
            standing = torch.where(
                (marked > 0) & (standing < marked), deep.double() + marked, standing
            )
        return Chosen(ranked(standing.masked_fill(seen.isinf(), _FIRST), valid, view.most))


METHOD = HiPrune
