"""Methods with a scorer of their own: they say themselves which tokens a layer's cut leaves.

Their fields are the parameters, `decider` makes the scorer of them. Those that come with st3 lie in
`st3.methods.inside`. No torch is imported to list them: `decider` imports what it computes with.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from st3.methods.base import Method

if TYPE_CHECKING:
    from st3.methods.scorers import Scorer


@dataclass(frozen=True)
class Deciding(Method):
    """Visual tokens leave between the decoder's layers, by a rule of the method's own.

    Attributes:
        scorer: what decides; by default the method itself, and otherwise any scorer.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    """What it must see besides queries and keys; see `Scorer.needs`."""
    is_set: ClassVar[bool] = False
    """Whether its choice holds for one budget only, and others do not nest in it."""
    differs: ClassVar[str] = ""
    """What differs from the authors' code."""
    published: ClassVar[Mapping[str, str]] = {}
    """Settings that were published, by name, as parameters."""

    scorer: str = ""

    def __post_init__(self) -> None:
        if not self.scorer:
            object.__setattr__(self, "scorer", self.name)
        super().__post_init__()

    @property
    def decides(self) -> bool:
        return self.scorer == self.name

    def ranks_by(self) -> Scorer:
        return self.decider() if self.decides else super().ranks_by()

    @abstractmethod
    def decider(self) -> Scorer:
        """What ranks the visual tokens in the layer that decides a cut."""
