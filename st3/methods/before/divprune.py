"""DivPrune: the tokens that lie farthest from each other, whatever was asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from st3.methods.selecting import Chosen, Selecting

if TYPE_CHECKING:
    from st3.methods.view import View


@dataclass(frozen=True)
class DivPrune(Selecting):
    """The subset whose nearest two tokens are farthest apart, greedily (max-min, by cosine).

    Alvar et al., *DivPrune*, CVPR 2025. An order: first the token with the farthest nearest
    neighbour, then each time the one farthest from all before.
    """

    name: ClassVar[str] = "divprune"
    source: ClassVar[str] = "DivPrune, arXiv 2503.02175"
    needs: ClassVar[tuple[str, ...]] = ("features",)
    differs: ClassVar[str] = (
        "float32, and what was chosen is out of the choice, so that no token counts twice; "
        "each picture by itself unless per=prompt, as there; positions kept unless "
        "positions=compact, as there; marks at the ends of lines are in the choice and in the "
        "budget, as there"
    )
    published: ClassVar[Mapping[str, str]] = {"paper": "keep=9.8%,per=prompt,positions=compact"}

    keep: float | int | str = "9.8%"

    def choose(self, view: View) -> Chosen:
        from st3.methods.greedy import farthest_first, similarities

        return Chosen(farthest_first(similarities(view.units()), view.valid, view.most))


METHOD = DivPrune
