"""AIM's part before the decoder: half of each frame's tokens into the other half, twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from st3.methods.selecting import Chosen, Selecting

if TYPE_CHECKING:
    from st3.methods.view import View


@dataclass(frozen=True)
class AIM(Selecting):
    """Bipartite matching of the projector's output within frames, to plain means.

    Zhong et al., *AIM*, ICCV 2025: a half, and of what is left a half again. A set. The part inside
    the decoder asks the whole matrix of attention, which no fast kernel gives, for PageRank, and is
    left out; `aim+METHOD` puts another in its place.
    """

    name: ClassVar[str] = "aim"
    source: ClassVar[str] = "AIM, arXiv 2412.03248"
    needs: ClassVar[tuple[str, ...]] = ("features", "frames")
    is_set: ClassVar[bool] = True
    differs: ClassVar[str] = (
        "without its part in the decoder; of a video the pairs of all frames compete, which is the "
        "same where a round takes all it can, a half; tokens stay in prompt order"
    )
    published: ClassVar[Mapping[str, str]] = {"25%": "keep=25%"}

    def choose(self, view: View) -> Chosen:
        from st3.methods.greedy import rows_of
        from st3.methods.merging import padded, paired

        frame = view.frame
        found = [
            paired(
                view.features[pool, :size], count, by_size=False, frame=frame[pool, :size]
            )
            for pool, (size, count) in enumerate(zip(view.sizes, view.counts, strict=True))
        ]  # fmt: skip
        return Chosen(
            rows_of([one.order for one in found], view.most),
            padded([[one.part] for one in found]),
        )


METHOD = AIM
