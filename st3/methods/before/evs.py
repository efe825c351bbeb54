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


@dataclass(frozen=True)
class EVS(Selecting):
    """A video's tokens that differ most from the same place one frame before.

    *Efficient Video Sampling*, arXiv 2510.14624, as inference engines have it: cosine of the
    projector's output. The first frame comes first. An order, of all frames together.
    """

    name: ClassVar[str] = "evs"
    source: ClassVar[str] = "EVS, arXiv 2510.14624"
    needs: ClassVar[tuple[str, ...]] = ("features", "frames")
    differs: ClassVar[str] = (
        "a budget below one frame keeps the beginning of the first, theirs all of it; a frame of "
        "another size than the one before, or a picture, is new as a whole; positions kept, as in "
        "engines; the paper itself compares pixels"
    )
    published: ClassVar[Mapping[str, str]] = {
        "75%": "keep=25%",
        "70%": "keep=30%",
        "80%": "keep=20%",
        "90%": "keep=10%",
    }

    keep: float | int | str = "25%"
    per: str = "prompt"

    def choose(self, view: View) -> Chosen:
        import torch

        from st3.methods.greedy import ranked

        frame, units = view.frame, view.units()
        place = torch.arange(frame.shape[1], device=frame.device).expand_as(frame)
        begins = torch.ones_like(frame, dtype=torch.bool)
        begins[:, 1:] = frame[:, 1:] != frame[:, :-1]
        start = place.masked_fill(~begins, 0).cummax(1).values
        before = start.gather(1, (start - 1).clamp_min(0))  # where the frame before begins
        same = before + (place - start)
        length = torch.zeros_like(start).scatter_add_(1, start, view.valid.long())
        alike = length.gather(1, start) == length.gather(1, before)
        there = (start > 0) & alike
        last = units.gather(1, same.clamp(0, frame.shape[1] - 1)[..., None].expand(units.shape))
        change = (1 - (units * last).sum(-1)).masked_fill(~there, _ALL_NEW)
        return Chosen(ranked(change, view.valid, view.most))

    def budget(self) -> Budget:
        return replace(super().budget(), down=True)


METHOD = EVS
