"""Methods with a score of their own: they say themselves which tokens a cut in the decoder leaves.

Such a method is its own scorer: its fields are the parameters, `score` is the algorithm. Those that
come with st3 lie in `st3.methods.inside`. No torch is imported to list them: `score` imports what
it computes with.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from st3.methods.base import OwnRule

if TYPE_CHECKING:
    import torch

    from st3.methods.merge import Merge
    from st3.methods.scorers import LayerView, Scorer


@dataclass(frozen=True)
class Deciding(OwnRule):
    """Visual tokens leave between the decoder's layers, by a rule of the method's own.

    What decides is the method itself, unless `scorer` says otherwise.
    """

    stage: ClassVar[str] = "in the decoder by a score of their own"
    across_ranks: ClassVar[bool] = False
    """See `Scorer.across_ranks`."""

    def ranks_by(self) -> Scorer:
        from st3.methods.scorers import ByMethod

        return ByMethod(self, self.asks()) if self.decides else super().ranks_by()

    def asks(self) -> tuple[str, ...]:
        """Of `st3.methods.look.NEEDS`, what it asks `LayerView.look` for."""
        return self.needs

    @abstractmethod
    def score(self, view: LayerView) -> torch.Tensor:
        """Float32 [B, n], greater is more important; see `Scorer.score`."""

    def judge(self, view: LayerView) -> tuple[torch.Tensor, Merge | None]:
        """The score, and new values of some tokens; see `Scorer.judge`."""
        return self.score(view), None
