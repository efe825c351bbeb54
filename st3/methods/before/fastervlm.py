"""FasterVLM: the patches that the tower's class token attends to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from st3.methods.selecting import Chosen, Selecting

if TYPE_CHECKING:
    from st3.methods.view import View


@dataclass(frozen=True)
class FasterVLM(Selecting):
    """The tokens with most attention from the vision tower's class token, mean over heads.

    Zhang et al., *[CLS] Attention is All You Need*, arXiv 2412.01818v1; in the layer whose output
    the projector gets. An order; VisionZip without its merging.
    """

    name: ClassVar[str] = "fastervlm"
    source: ClassVar[str] = "FasterVLM, arXiv 2412.01818v1"
    needs: ClassVar[tuple[str, ...]] = ("attention features",)
    differs: ClassVar[str] = (
        "a budget is of a whole picture with all its tiles, theirs of each tile; marks at the ends "
        "of lines stay on top of it: their code packs tiles without, and so counts patches alone"
    )
    spares: ClassVar[str] = "marks"
    published: ClassVar[Mapping[str, str]] = {
        "drop-75%": "keep=144,positions=compact",
        "drop-90%": "keep=58,positions=compact",
        "drop-95%": "keep=29,positions=compact",
        "next-drop-95%": "keep=145,positions=compact",
    }

    def choose(self, view: View) -> Chosen:
        from st3.methods.greedy import ranked

        return Chosen(ranked(view.tower.attention("features"), view.valid, view.most))


METHOD = FasterVLM
