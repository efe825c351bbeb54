"""VisionZip: dominant tokens, and contextual ones into which the others are merged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from st3.methods.selecting import Chosen, Selecting

if TYPE_CHECKING:
    from st3.methods.view import View


@dataclass(frozen=True)
class VisionZip(Selecting):
    """Tokens with the class token's attention, and the rest merged by the likeness of its keys.

    Yang et al., *VisionZip*, CVPR 2025. Of the tokens that are not dominant, every so-many-th is a
    target; each of the others goes to the target whose key in the tower is most like its own, and
    a target gets the mean of what came to it added on top. A set; without contextual tokens it is
    FasterVLM.

    Attributes:
        contextual: share of the budget for targets, rounded down.
    """

    name: ClassVar[str] = "visionzip"
    source: ClassVar[str] = "VisionZip, arXiv 2412.04467"
    needs: ClassVar[tuple[str, ...]] = ("attention features", "keys features", "features")
    is_set: ClassVar[bool] = True
    differs: ClassVar[str] = (
        "merged after the projector, as in their code for Qwen, where that for LLaVA merges before "
        "it; the class token, one of their dominant ones, does not go to the decoder; a budget is "
        "of a whole picture with all its tiles; marks at the ends of lines are dominant; a "
        "contextual token stands where its target stood, theirs behind all dominant ones, which is "
        "another order under positions=compact"
    )
    published: ClassVar[Mapping[str, str]] = {
        "192": "keep=192,contextual=0.15625,positions=compact",
        "128": "keep=128,contextual=0.15625,positions=compact",
        "64": "keep=64,contextual=0.15625,positions=compact",
        "next-640": "keep=640,contextual=0.15625,positions=compact",
        "next-320": "keep=320,contextual=0.15625,positions=compact",
        "next-160": "keep=160,contextual=0.15625,positions=compact",
    }

    keep: float | int | str = "11.1%"
    contextual: float = 0.15625

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.contextual <= 1:
            raise ValueError(f"visionzip: contextual must be a share, got {self.contextual:g}")

    def choose(self, view: View) -> Chosen:
        import torch

        from st3.methods.greedy import ranked, rows_of, similarities
        from st3.methods.merge import Part
        from st3.methods.merging import means_into, padded
        from st3.methods.view import units

        tower = view.tower
        order = ranked(tower.attention("features"), view.valid, view.valid.shape[1])
        similar = similarities(units(tower.keys("features").mean(2), view.valid))
        picks, parts = [], []
        for pool, (size, count) in enumerate(zip(view.sizes, view.counts, strict=True)):
            many = int(count * self.contextual + 1e-9)
            dominant = order[pool, : count - many]
            others = order[pool, count - many : size].sort().values
            number = torch.arange(len(others), device=others.device)
            step = max(1, len(others) // max(1, many))
            targets = others[::step][:many]
            picks.append(torch.cat((dominant, targets)))
            if not many:
                parts.append([Part(dominant, dominant, torch.ones_like(dominant).float())])
                continue
            goes = (number % step != 0) | (number >= step * many)
            likeness = similar[pool][others[:, None], targets]
            own = Part(targets, targets, torch.ones_like(targets).float())
            parts.append([own, means_into(targets, others, likeness, goes, own=0)])
        return Chosen(rows_of(picks, view.most), padded(parts))


METHOD = VisionZip
