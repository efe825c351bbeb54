"""HiRED: a budget for each tile of a picture, and the class token inside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from st3.methods.selecting import Chosen, Selecting

if TYPE_CHECKING:
    import torch

    from st3.methods.budget import Budget
    from st3.methods.view import View


@dataclass(frozen=True)
class HiRED(Selecting):
    """A budget for each tile, by what the thumbnail's class token looks at; in a tile, by its own.

    Arif et al., *HiRED*, AAAI 2025. The whole picture gets a share alpha of the budget. The rest is
    spread over its tiles: as the first layer's attention marks the picture's tokens. In each, those
    stay that the class token of the last layer looks at. A set; a picture of one crop: FasterVLM.

    Attributes:
        alpha: share of the budget for the whole picture, before its tiles.
    """

    name: ClassVar[str] = "hired"
    source: ClassVar[str] = "HiRED, arXiv 2408.10945"
    needs: ClassVar[tuple[str, ...]] = ("attention first", "attention features")
    is_set: ClassVar[bool] = True
    differs: ClassVar[str] = (
        "the budget is met to the token, where theirs may fall a few short; marks run through the "
        "whole picture line by line, a tile each, as in their code and not as tiles lie; marks at "
        "the ends of lines are kept first and count in the budget"
    )
    published: ClassVar[Mapping[str, str]] = {
        "20%": "keep=20%,alpha=0.5,positions=compact",
        "40%": "keep=40%,alpha=0.5,positions=compact",
        "10%": "keep=10%,alpha=0.5,positions=compact",
    }

    keep: float | int | str = "20%"
    alpha: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"hired: alpha must be a share, got {self.alpha:g}")

    def budget(self) -> Budget:
        return replace(super().budget(), down=True)

    def choose(self, view: View) -> Chosen:
        import torch

        from st3.methods.greedy import ranked

        tower, valid = view.tower, view.valid
        early, late = tower.attention("first"), tower.attention("features")
        crop = tower.crops().masked_fill(~valid, -1)
        first = crop.masked_fill(crop < 0, 1 << 30).amin(1, keepdim=True)
        crop = torch.where(crop < 0, -1, crop - first)  # 0 is the whole picture
        tiles = crop.amax(1, keepdim=True)
        whole = crop == 0
        size = whole.sum(1, keepdim=True)
        budget = view.fixed(view.counts)
        spent = torch.where(tiles > 0, (budget * self.alpha).long().minimum(size), budget)
        # Marks on the whole picture, which run through it line by line, a tile each.
        standing = _rank(early.masked_fill(~whole, -1.0))
        marked = whole & (standing < (size * (1 - self.alpha)).long())
        number = whole.long().cumsum(1) - 1
        runs = (number * tiles // size.clamp_min(1) + 1).masked_fill(~marked, 0)
        marks = torch.zeros_like(crop).scatter_add_(1, runs, marked.long())
        total = marked.sum(1, keepdim=True).clamp_min(1)
        each = (marks * (budget - spent) // total).minimum(size)  # by the number of the tile
        each[:, :1] = spent
        # Within a tile, the best; those beyond their tile's budget fill what truncation left.
        by_tile = crop.double() - late.clamp_max(1).double() / 2
        order = by_tile.argsort(dim=1, stable=True)
        tile = crop.gather(1, order)
        begins = torch.ones_like(tile, dtype=torch.bool)
        begins[:, 1:] = tile[:, 1:] != tile[:, :-1]
        place = torch.arange(tile.shape[1], device=tile.device).expand_as(tile)
        inside = place - place.masked_fill(~begins, 0).cummax(1).values
        inside = torch.empty_like(inside).scatter_(1, order, inside)
        within = inside < each.gather(1, crop.clamp_min(0))
        enters = (within & (crop >= 0)) | (crop < 0)
        return Chosen(ranked(late.clamp_max(1).double() + 2 * enters, valid, view.most))


def _rank(score: torch.Tensor) -> torch.Tensor:
    """int64 [G, n]: 0 for the greatest."""
    import torch

    order = score.argsort(dim=1, descending=True, stable=True)
    place = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, place)


METHOD = HiRED
