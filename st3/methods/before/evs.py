"""EVS: what changes from frame to frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from st3.methods.selecting import Chosen, Selecting

if TYPE_CHECKING:
    from st3.methods.budget import Budget
    from st3.methods.view import View

_ALL_NEW = 255.0
_STILL = "pictures beside a video stay whole: nothing moves in them"


@dataclass(frozen=True)
class EVS(Selecting):
    """A video's tokens that differ most from the same place one frame before.

    *Efficient Video Sampling*, arXiv 2510.14624, as inference engines have it: cosine of the
    projector's output. Each video by itself: its first frame comes first, and stays whole. An order
    of all frames together.
    """

    name: ClassVar[str] = "evs"
    source: ClassVar[str] = "EVS, arXiv 2510.14624"
    needs: ClassVar[tuple[str, ...]] = ("features", "videos")
    differs: ClassVar[str] = (
        "what stands behind a video's last whole frame comes with the first; still pictures beside "
        "a video stay whole, on top of the budget, and without a video it is refused; families "
        "that show a video as pictures: neighbours of one size are its frames; positions kept, as "
        "in engines; the paper itself compares pixels"
    )
    spares: ClassVar[str] = "pictures"
    published: ClassVar[Mapping[str, str]] = {
        "drop-70%": "keep=30%",
        "drop-75%": "keep=25%",
        "drop-80%": "keep=20%",
        "drop-90%": "keep=10%",
    }

    keep: float | int | str = "25%"

    def choose(self, view: View) -> Chosen:
        import torch

        from st3.methods.greedy import ranked
        from st3.methods.scorers import golden_spread

        units = view.units()
        change = units.new_full(view.valid.shape, _ALL_NEW)
        for row, pool in enumerate(view.pools):
            first = 0
            for piece in pool:
                last = first + piece.tokens
                if piece.moves:
                    frame = piece.frame
                    end = last - piece.tokens % frame
                    now, before = units[row, first + frame : end], units[row, first : end - frame]
                    change[row, first + frame : end] = 1 - (now * before).sum(-1)
                else:  # evenly, where others' schedules take a part of it
                    view.note(_STILL)
                    place = torch.arange(piece.tokens, device=change.device)
                    change[row, first:last] = _ALL_NEW + golden_spread(place)
                first = last
        return Chosen(ranked(change, view.valid, view.most))

    def budget(self) -> Budget:
        return replace(super().budget(), down=True)


METHOD = EVS
