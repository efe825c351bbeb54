"""SCOPE: tokens that cover the picture and are salient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from st3.methods.selecting import Chosen, Selecting

if TYPE_CHECKING:
    from st3.methods.view import View


@dataclass(frozen=True)
class SCOPE(Selecting):
    """Coverage times saliency: greedy facility location, weighted by the class token's attention.

    *SCOPE: Saliency-Coverage Oriented Token Pruning*, NeurIPS 2025. A token adds what it covers
    better than all before, by cosine of what the projector gets; times saliency to the power
    alpha. An order.

    Attributes:
        alpha: 0 is coverage alone.
    """

    name: ClassVar[str] = "scope"
    source: ClassVar[str] = "SCOPE, arXiv 2510.24214"
    needs: ClassVar[tuple[str, ...]] = ("attention features", "patches")
    differs: ClassVar[str] = (
        "the mean over heads in place of the sum, which ranks alike; marks at the ends of lines "
        "count as salient as the best patch, cover nothing, so come last, and count in the budget"
    )
    published: ClassVar[Mapping[str, str]] = {
        "192": "keep=192,positions=compact",
        "128": "keep=128,positions=compact",
        "64": "keep=64,positions=compact",
    }

    alpha: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha < float("inf"):
            raise ValueError(f"scope: alpha must not be negative, and finite, got {self.alpha:g}")

    def choose(self, view: View) -> Chosen:
        from st3.methods.greedy import facility, finite, of_largest, similarities
        from st3.methods.view import units

        tower = view.tower
        saliency = of_largest(finite(tower.attention("features"), view.valid))
        similar = similarities(units(tower.features(), view.valid))
        quality = self.alpha * saliency.log().clamp_min(-1e30)  # 0 to the power 0 is 1
        return Chosen(facility(similar, quality, view.valid, view.most))


METHOD = SCOPE
