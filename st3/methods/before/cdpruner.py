"""CDPruner: a determinantal point process conditioned on the question."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from st3.methods.selecting import Chosen, Selecting

if TYPE_CHECKING:
    from st3.methods.view import View


@dataclass(frozen=True)
class CDPruner(Selecting):
    """Diverse tokens that have to do with the question: greedy MAP of a DPP, weighted.

    Zhang et al., *CDPruner*, NeurIPS 2025; an order, given the text. Kernel: relevance x cosine x
    relevance.

    Attributes:
        theta: how much relevance counts: 0 not at all, 1 as it is; between, by
            exp(theta / (2 (1 - theta)) relevance).
    """

    name: ClassVar[str] = "cdpruner"
    source: ClassVar[str] = "CDPruner, arXiv 2506.10967"
    needs: ClassVar[tuple[str, ...]] = ("features", "text")
    differs: ClassVar[str] = (
        "relevance is +cosine to the mean embedding of all the prompt's text, as where there is no "
        "CLIP text encoder; with LLaVA the authors ask CLIP's, which checkpoints of LLaVA lack, "
        "and take -cosine; it is brought to 0..1 in each choice (theirs: over all crops), "
        "without their 1e-6, so that the least relevant token comes last; theta is 0.5 by default, "
        "as in an engine's port, where theirs is 1; tiles of a picture are one choice with one "
        "budget, theirs one each; where the kernel's rank is used up, tokens spread evenly follow; "
        "a video is one choice, theirs one a frame; marks at the ends of lines are in the choice "
        "and count: their code packs tiles without"
    )
    published: ClassVar[Mapping[str, str]] = {
        "128": "keep=128,theta=1,positions=compact",
        "64": "keep=64,theta=1,positions=compact",
        "32": "keep=32,theta=1,positions=compact",
        "next-640": "keep=640,theta=1,positions=compact",
        "next-320": "keep=320,theta=1,positions=compact",
        "next-160": "keep=160,theta=1,positions=compact",
    }

    keep: float | int | str = "11.1%"
    theta: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.theta <= 1:
            raise ValueError(f"cdpruner: theta must lie between 0 and 1, got {self.theta:g}")

    def choose(self, view: View) -> Chosen:
        import torch

        from st3.methods.greedy import SPREAD, greedy_map, similarities, spread_to_one

        units = view.units()
        question = torch.nn.functional.normalize(view.question(), dim=-1)
        view.note("relevance by the prompt's text embeddings, for want of CLIP's text encoder")
        with torch.autocast(units.device.type, enabled=False):
            cosine = (units @ question[..., None])[..., 0]
        relevance = spread_to_one(cosine, view.valid)
        if self.theta < 1:
            quality = self.theta / (2 * (1 - self.theta)) * relevance
        else:
            quality = relevance.log()
        picks, rank = greedy_map(similarities(units), quality, view.valid, view.most)
        view.note(SPREAD, rank[:, None] < view.fixed(view.counts))
        return Chosen(picks)


METHOD = CDPruner
