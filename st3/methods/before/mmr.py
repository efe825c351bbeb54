"""MMR: importance against likeness to what was chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from st3.methods.selecting import Chosen, Selecting

if TYPE_CHECKING:
    from st3.methods.view import View


@dataclass(frozen=True)
class MMR(Selecting):
    """Important and unlike what was chosen: maximal marginal relevance.

    IDPruner (arXiv 2602.13315) with the tower's attention in place of its trained score: so a
    method of ours. trade x importance - (1 - trade) x likeness to the nearest chosen one, by
    cosine; importance brought to 0..1. An order.

    Attributes:
        trade: lambda; 1 is importance alone.
    """

    name: ClassVar[str] = "mmr"
    source: ClassVar[str] = "IDPruner's rule, arXiv 2602.13315; score ours"
    needs: ClassVar[tuple[str, ...]] = ("features", "attention features")
    differs: ClassVar[str] = (
        "the authors' importance is a trained selector's, ours the vision tower's attention"
    )
    published: ClassVar[Mapping[str, str]] = {
        "paper": "trade=0.5",
    }

    trade: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.trade <= 1:
            raise ValueError(f"mmr: trade must lie between 0 and 1, got {self.trade:g}")

    def choose(self, view: View) -> Chosen:
        from st3.methods.greedy import (
            finite,
            marginal_relevance,
            of_largest,
            similarities,
            spread_to_one,
        )

        attention = of_largest(finite(view.tower.attention("features"), view.valid))
        importance = spread_to_one(attention, view.valid)
        similar = similarities(view.units())
        return Chosen(marginal_relevance(similar, importance, view.valid, view.most, self.trade))


METHOD = MMR
