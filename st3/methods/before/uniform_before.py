"""Uniform, before the decoder: every so manieth token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from st3.methods.selecting import Chosen, Selecting

if TYPE_CHECKING:
    from st3.methods.view import View


@dataclass(frozen=True)
class UniformBefore(Selecting):
    """Tokens at even distances in the prompt, whatever the picture shows and however it lies.

    `uniform` spreads in the decoder, on ST3's schedule; `downsample` over lines and columns. A set:
    the places of several budgets do not nest.
    """

    name: ClassVar[str] = "uniform-before"
    source: ClassVar[str] = "baseline"
    needs: ClassVar[tuple[str, ...]] = ("features",)
    is_set: ClassVar[bool] = True

    def choose(self, view: View) -> Chosen:
        from st3.methods.cells import spread
        from st3.methods.greedy import rows_of
        from st3.methods.view import fixed

        device = view.valid.device
        picks = []
        for size, count in zip(view.sizes, view.counts, strict=True):
            even = [number * size // count for number in range(count)]
            places = tuple(even[number] for number in sorted(range(count), key=spread))
            picks.append(fixed(places, device))
        return Chosen(rows_of(picks, view.most))


METHOD = UniformBefore
