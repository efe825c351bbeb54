"""VisPruner: important tokens, and diverse ones among the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from st3.methods.selecting import Chosen, Selecting

if TYPE_CHECKING:
    import torch

    from st3.methods.view import View

_AT_ONCE = 8


@dataclass(frozen=True)
class VisPruner(Selecting):
    """A part by the class token's attention, the rest by removing duplicates among the others.

    Zhang et al., *VisPruner*, ICCV 2025. The others, in the order of importance, are dealt into two
    hands; of the first, those most like any of the second are thrown away, eight at a time, until
    enough are left. A set: the part of important ones changes with the budget.

    Attributes:
        important: r, the share of the budget that goes by attention.
    """

    name: ClassVar[str] = "vispruner"
    source: ClassVar[str] = "VisPruner, arXiv 2412.01818v2"
    needs: ClassVar[tuple[str, ...]] = ("attention features", "patches")
    is_set: ClassVar[bool] = True
    differs: ClassVar[str] = (
        "an odd number of others is dealt out as it comes, where theirs ends in an error; tiles of "
        "a picture share its budget, theirs get the same each; marks at the ends of lines stay on "
        "top of it: their code packs tiles without, and so counts patches alone; a part "
        "that is whole in decimals is so (0.29 of 100 is 29), where binary fractions fall one short"
    )
    spares: ClassVar[str] = "marks"
    published: ClassVar[Mapping[str, str]] = {
        "128": "keep=128,important=0.5,positions=compact",
        "64": "keep=64,important=0.75,positions=compact",
    }

    important: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.important <= 1:
            raise ValueError(f"vispruner: important must be a share, got {self.important:g}")

    def choose(self, view: View) -> Chosen:
        from st3.methods.greedy import ranked, rows_of, similarities
        from st3.methods.view import units

        tower = view.tower
        order = ranked(tower.attention("features"), view.valid, view.valid.shape[1])
        similar = similarities(units(tower.features(), view.valid))
        chosen = []
        numbers = zip(view.sizes, view.counts, view.marks, strict=True)
        for pool, (size, count, marks) in enumerate(numbers):
            head = marks + int((count - marks) * self.important + 1e-9)  # marks come first
            rest = order[pool, head:size]
            while len(rest) > count - head:
                first, second = rest[0::2], rest[1::2]
                if not len(second):  # one is left, and none is to stay
                    rest = second
                    break
                gone = min(_AT_ONCE, len(rest) - (count - head), len(first))
                likeness = similar[pool][first[:, None], second].amax(1)
                rest = first[likeness.argsort(descending=True, stable=True)[gone:]]
                rest = _join(rest, second)
            chosen.append(_join(order[pool, :head], rest))
        return Chosen(rows_of(chosen, view.most))


def _join(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.cat((first, second))


METHOD = VisPruner
