"""LLaVA-PruMerge: as many tokens as stand out, each with what is like it, and all else in one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from st3.methods.selecting import ADAPTIVE, Chosen, Selecting

if TYPE_CHECKING:
    import torch

    from st3.methods.merge import Part
    from st3.methods.view import View


@dataclass(frozen=True)
class PruMerge(Selecting):
    """Tokens whose attention from the class token is an outlier, with their neighbours added.

    Shang et al., *LLaVA-PruMerge*, ICCV 2025. How many stay is decided for each picture: those
    above the third quartile by 1.5 times the distance of the quartiles. To each that stays, the
    tokens with the most similar keys are added, each times its attention; all that are dropped
    become one token more, summed in the same way. A set. With `keep` a number or a share, so many
    stay, the one more among them.

    Attributes:
        neighbours: k, how many are added to each that stays.
    """

    name: ClassVar[str] = "prumerge"
    source: ClassVar[str] = "PruMerge, arXiv 2403.15388"
    needs: ClassVar[tuple[str, ...]] = ("joint last", "keys last", "features")
    is_set: ClassVar[bool] = True
    adapts: ClassVar[bool] = True
    differs: ClassVar[str] = (
        "merged after the projector, theirs before it; the one token more stands where the most "
        "attended of the dropped stood, theirs at the end; the others keep the prompt's order, "
        "theirs stand by attention, sampled ones behind; quartiles of a picture with all its "
        "tiles, theirs of a whole batch; sums are not brought to weights of 1, as in their code "
        "and not as in the paper; their checkpoints are tuned to it, and others are not"
    )
    published: ClassVar[Mapping[str, str]] = {
        "paper": "keep=adaptive,neighbours=32,positions=compact"
    }

    keep: float | int | str = ADAPTIVE
    neighbours: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.neighbours < 0:
            raise ValueError(f"{self.name}: neighbours must not be negative, got {self.neighbours}")

    def choose(self, view: View) -> Chosen:

        from st3.methods.greedy import rows_of, similarities
        from st3.methods.merging import padded
        from st3.methods.view import units

        tower = view.tower
        attention = tower.joint("last")
        similar = similarities(units(tower.keys("last").flatten(2), view.valid))
        found, counts, parts = [], [], []
        for pool, (size, count) in enumerate(zip(view.sizes, view.counts, strict=True)):
            score = attention[pool, :size]
            if self.budget().adaptive:
                marked, kept = self.outliers(score)
                count = min(size, kept + 1)
            else:
                kept = count if count in (1, size) else count - 1
                marked = self.marked(score, kept)
            order = (score.clamp_max(1).double() + marked).argsort(descending=True, stable=True)
            order = order.masked_fill(score.isnan().any(), -1)
            found.append(order)
            counts.append(count)
            parts.append(self._merge(order.clamp_min(0), kept, count, score, similar[pool]))
        return Chosen(rows_of(found, max(counts)), padded(parts), tuple(counts))

    def outliers(self, score: torch.Tensor) -> tuple[torch.Tensor, int]:
        """What stays of a picture's scores [n]: see `marked`; and how many, which the host asks."""
        import torch

        known = score[score.isfinite()]
        if not len(known):
            return torch.zeros_like(score), len(score)
        low, high = known.quantile(known.new_tensor([0.25, 0.75])).tolist()
        marks = len(score) - len(known)
        many = max(1, int((known > high + 1.5 * (high - low)).sum()))
        return self.spread(score, marks + many, max(1, len(known) // many // 3))

    def spread(self, score: torch.Tensor, top: int, step: int) -> tuple[torch.Tensor, int]:
        """The same of so many that stand out; `step` is for those that add a grid."""
        return self.marked(score, top), top

    def marked(self, score: torch.Tensor, kept: int) -> torch.Tensor:
        """Of scores [n], float64: above 1 for those that stay, the first ones most; 0 elsewhere.

        Marks at the ends of lines always stay, and first.
        """
        import torch

        best = score.argsort(descending=True, stable=True)[:kept]
        stays = torch.zeros_like(score).double().index_fill_(0, best, 4.0)
        return stays + 4.0 * score.isinf()

    def _merge(
        self, order: torch.Tensor, kept: int, count: int, score: torch.Tensor, similar: torch.Tensor
    ) -> list[Part]:
        import torch

        from st3.methods.merge import Part

        size = len(score)
        stays, dropped, spare = order[:kept], order[kept:], order[kept:count]
        is_mark = score.isinf()
        weight = score.masked_fill(is_mark, 0).float()
        likeness = similar[stays, :size].scatter(1, stays[:, None], float("-inf"))
        most = min(self.neighbours, size - 1)
        near = likeness.argsort(dim=1, descending=True, stable=True)[:, :most]
        added = weight[near].masked_fill(is_mark[stays][:, None], 0)
        parts = [
            Part(stays, stays, torch.ones_like(stays).float()),
            Part(stays.repeat_interleave(most), near.flatten(), added.flatten()),
        ]
        if len(spare):
            parts.append(Part(spare.expand(len(dropped)), dropped, weight[dropped]))
        return parts


METHOD = PruMerge
