"""ToMe, behind the tower: tokens that are alike become one, two by two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from st3.methods.selecting import Chosen, Selecting

if TYPE_CHECKING:
    from st3.methods.view import View


@dataclass(frozen=True)
class ToMe(Selecting):
    """Bipartite soft matching of the projector's output, round after round, to means.

    Bolya et al., *Token Merging*, ICLR 2023. Of every second token the most similar among those
    between them is looked for; the pairs that are most alike become one, up to half in a round,
    weighted by how many tokens each stands for. A set.
    """

    name: ClassVar[str] = "tome"
    source: ClassVar[str] = "ToMe, arXiv 2210.09461"
    needs: ClassVar[tuple[str, ...]] = ("features",)
    is_set: ClassVar[bool] = True
    differs: ClassVar[str] = (
        "once, of what leaves the projector, by its cosines: theirs merges a little in every block "
        "of the tower, by keys, which no grid of patches survives; tokens stay in prompt order; "
        "attention is not weighted by how many a token stands for"
    )

    def choose(self, view: View) -> Chosen:
        from st3.methods.greedy import rows_of
        from st3.methods.merging import padded, paired

        found = [
            paired(view.features[pool, :size], count, by_size=True)
            for pool, (size, count) in enumerate(zip(view.sizes, view.counts, strict=True))
        ]
        return Chosen(
            rows_of([one.order for one in found], view.most),
            padded([[one.part] for one in found]),
        )


METHOD = ToMe
