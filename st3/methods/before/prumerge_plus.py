"""LLaVA-PruMerge+: the same with tokens of an even grid besides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from st3.methods.before.prumerge import PruMerge

if TYPE_CHECKING:
    import torch

_STANDING_OUT = 4  # of so many tokens one; the others are of the grid (ours)


@dataclass(frozen=True)
class PruMergePlus(PruMerge):
    """What stands out, and about three times as many tokens spread over the picture, merged.

    Shang et al., *LLaVA-PruMerge*, ICCV 2025. A set; with `keep` a number or a share, a quarter of
    it stands out.
    """

    name: ClassVar[str] = "prumerge_plus"
    source: ClassVar[str] = "PruMerge+, arXiv 2403.15388"
    differs: ClassVar[str] = (
        f"{PruMerge.differs}; the grid goes on to the last token, theirs stops before it"
    )
    published: ClassVar[Mapping[str, str]] = {
        "paper": "keep=adaptive,neighbours=32,positions=compact"
    }

    def spread(self, score: torch.Tensor, top: int, step: int) -> tuple[torch.Tensor, int]:
        marked = super().marked(score, top)
        grid = marked[::step]
        grid.copy_(grid.clamp_min(2))
        return marked, int((marked > 0).sum())

    def marked(self, score: torch.Tensor, kept: int) -> torch.Tensor:
        import torch

        many = max(1, kept // _STANDING_OUT)
        marked = super().marked(score, many)
        rest = score.argsort(descending=True, stable=True)[many:].sort().values
        wanted = kept - many
        number = torch.arange(wanted, device=score.device) * len(rest) // max(1, wanted)
        return marked.maximum(torch.zeros_like(marked).index_fill_(0, rest[number], 2.0))


METHOD = PruMergePlus
