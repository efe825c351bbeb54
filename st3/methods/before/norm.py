"""Norm: the loudest tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from st3.methods.selecting import Chosen, Selecting

if TYPE_CHECKING:
    from st3.methods.view import View


@dataclass(frozen=True)
class Norm(Selecting):
    """The tokens with the largest norm, as the decoder would get them.

    A baseline of importance without a tower's attention, in float32. An order.
    """

    name: ClassVar[str] = "norm"
    source: ClassVar[str] = "baseline"
    needs: ClassVar[tuple[str, ...]] = ("features",)

    def choose(self, view: View) -> Chosen:
        from st3.methods.greedy import ranked

        return Chosen(ranked(view.features.float().norm(dim=-1), view.valid, view.most))


METHOD = Norm
