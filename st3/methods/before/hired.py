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

_NO_TILES = "no picture of several tiles behind a whole one: attention alone, as fastervlm"


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
    needs: ClassVar[tuple[str, ...]] = ("attention first", "attention features", "tiles")
    is_set: ClassVar[bool] = True
    differs: ClassVar[str] = (
        "the budget is met to the token, where theirs may fall a few short; a share is of the "
        "patches that are left when tiles are packed; marks run through the whole picture line by "
        "line, a tile each, as in their code and not as tiles lie; marks at the ends of lines stay "
        "on top of the budget, where their script packs tiles without; with per=prompt a picture "
        "gets a share of it by its size; "
        "where no whole picture comes before its tiles, each tile is a picture by itself"
    )
    spares: ClassVar[str] = "marks"
    published: ClassVar[Mapping[str, str]] = {
        "keep-20%": "keep=20%,alpha=0.5,positions=compact",
        "keep-40%": "keep=40%,alpha=0.5,positions=compact",
        "keep-10%": "keep=10%,alpha=0.5,positions=compact",
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
        from torch.nn.utils.rnn import pad_sequence

        from st3.methods.greedy import ranked

        tower, valid = view.tower, view.valid
        early, late, crop = tower.attention("first"), tower.attention("features"), tower.crops()
        cuts = _cuts(view)
        view.note(_NO_TILES, _alone(crop, cuts))
        early, late_in, crop = (
            pad_sequence([x[pool, here] for pool, here, _ in cuts], True, fill)
            for x, fill in ((early, 0), (late, 0), (crop, -1))
        )
        enters = self._enters(early, late_in, crop, view.fixed([budget for *_, budget in cuts]))
        inside = torch.zeros_like(valid)
        for number, (pool, here, _) in enumerate(cuts):
            inside[pool, here] = enters[number, : here.stop - here.start]
        return Chosen(ranked(late.clamp_max(1).double() + 2 * inside, valid, view.most))

    def _enters(
        self, early: torch.Tensor, late: torch.Tensor, crop: torch.Tensor, budget: torch.Tensor
    ) -> torch.Tensor:
        """bool [P, n]: what gets in of a picture in each row, by budgets of patches [P, 1].

        All that is of no crop does, such as marks at the ends of lines.
        """
        import torch

        from st3.methods.orders import rank

        first = crop.masked_fill(crop < 0, 1 << 30).amin(1, keepdim=True)
        crop = torch.where(crop < 0, -1, crop - first)  # 0 is the whole picture
        tiles = crop.amax(1, keepdim=True)
        whole = crop == 0
        size = whole.sum(1, keepdim=True)
        spent = torch.where(tiles > 0, (budget * self.alpha).long().minimum(size), budget)
        # Marks on the whole picture, which run through it line by line, a tile each.
        standing = rank(early.masked_fill(~whole, -1.0))
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
        return within | (crop < 0)


def _alone(crop: torch.Tensor, cuts: list[tuple[int, slice, int]]) -> torch.Tensor:
    """bool []: whether no picture is of several of these crops int64 [G, n]."""
    import torch

    whole = [crop[pool, here] for pool, here, _ in cuts]
    several = [x.amax() > torch.where(x < 0, 1 << 30, x).amin() for x in whole]
    return ~torch.stack(several).any()


def _cuts(view: View) -> list[tuple[int, slice, int]]:
    """Of each picture its pool, its place there, and its budget of patches."""
    found = []
    for number, (pool, count, marks) in enumerate(
        zip(view.pools, view.counts, view.marks, strict=True)
    ):
        patches = count - marks
        total = max(1, sum(piece.tokens for piece in pool) - marks)
        first = before = 0
        for piece in pool:
            behind = before + piece.tokens - piece.marks
            budget = patches * behind // total - patches * before // total
            found.append((number, slice(first, first + piece.tokens), budget))
            first, before = first + piece.tokens, behind
    return found


METHOD = HiRED
