"""A determinantal point process over visual tokens, without a question."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from st3.methods.selecting import Chosen, Selecting

if TYPE_CHECKING:
    from st3.methods.view import View


@dataclass(frozen=True)
class DPP(Selecting):
    """The subset that spans most, greedily: MAP of a determinantal point process on cosines.

    CDPruner (NeurIPS 2025) with every token as relevant as any other. An order.
    """

    name: ClassVar[str] = "dpp"
    source: ClassVar[str] = "CDPruner without a question, arXiv 2506.10967"
    needs: ClassVar[tuple[str, ...]] = ("features",)
    differs: ClassVar[str] = (
        "where the kernel's rank is used up, tokens spread evenly follow, not NaN; marks at the "
        "ends of lines are in the choice and count in the budget"
    )
    published: ClassVar[Mapping[str, str]] = {
        "128": "keep=128,positions=compact",
        "64": "keep=64,positions=compact",
        "32": "keep=32,positions=compact",
        "next-640": "keep=640,positions=compact",
        "next-320": "keep=320,positions=compact",
        "next-160": "keep=160,positions=compact",
    }

    keep: float | int | str = "11.1%"

    def choose(self, view: View) -> Chosen:
        import torch

        from st3.methods.greedy import SPREAD, greedy_map, similarities

        alike = torch.zeros(view.valid.shape, device=view.valid.device)
        picks, rank = greedy_map(similarities(view.units()), alike, view.valid, view.most)
        view.note(SPREAD, rank[:, None] < view.fixed(view.counts))
        return Chosen(picks)


METHOD = DPP
