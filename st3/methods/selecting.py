"""Methods that choose before the decoder: a budget, and an order of a picture's visual tokens.

Such a method is its own selector: its fields are the parameters, `choose` is the algorithm. The
file of a method lies in `st3.methods.before`. No torch is imported to list them: `choose` imports
what it computes with.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from st3.methods.base import Method
from st3.methods.budget import Budget, read_keep
from st3.methods.merge import Merge as Merge
from st3.methods.schedule import Schedule

if TYPE_CHECKING:
    import torch

    from st3.methods.scorers import Scorer
    from st3.methods.view import View

POSITIONS = ("original", "compact")
"""Positions of what stays: those of the untrimmed prompt, or counted anew without gaps."""


@dataclass(frozen=True)
class Chosen:
    """What a selector says of G pools.

    Attributes:
        picks: int64 [G, m], tokens of each pool by falling importance, m at least the largest
            count.
        merge: what is added to what stays, None for nothing.
    """

    picks: torch.Tensor
    merge: Merge | None = None


@dataclass(frozen=True)
class Selecting(Method):
    """Visual tokens are chosen before layer 1, and no others ever reach the decoder.

    Attributes:
        scorer: what orders those that stay, where they leave later (`tau`); by default the method
            itself, and otherwise any scorer.
        keep: a share of the visual tokens such as 0.11 or 11%, or a number of them such as 64.
        per: what `keep` is spent on, one of `st3.methods.budget.PER`.
        positions: one of `POSITIONS`.
        tau, annealing: as for `VTA`; no annealing unless asked for.
    """

    stage: ClassVar[str] = "before the decoder"
    needs: ClassVar[tuple[str, ...]] = ()
    """What it must see, by default; see `asks`."""
    is_set: ClassVar[bool] = False
    """Whether its choice holds for one budget only, and others do not nest in it."""
    differs: ClassVar[str] = ""
    """What differs from the authors' code."""
    published: ClassVar[Mapping[str, str]] = {}
    """Settings that were published, by name, as parameters."""

    scorer: str = ""
    keep: float | int | str = "25%"
    per: str = "picture"
    positions: str = "original"
    tau: int | None = None
    annealing: str = "cosine"

    def __post_init__(self) -> None:
        if not self.scorer:
            object.__setattr__(self, "scorer", self.name)
        super().__post_init__()
        self.budget()
        if self.positions not in POSITIONS:
            raise ValueError(
                f"positions must be one of {', '.join(POSITIONS)}, got {self.positions!r}"
            )

    def budget(self) -> Budget:
        """What `keep` and `per` ask for."""
        share, tokens = read_keep(self.keep)
        return Budget(share, tokens, self.per)

    def schedule(self, layers: int) -> Schedule:
        return Schedule((1.0,) * layers, self.tau, self.annealing, self.budget())

    def settings(self, layers: int) -> dict[str, Any]:
        share, tokens = read_keep(self.keep)
        return super().settings(layers) | {"keep": tokens if share is None else share}

    @property
    def decides(self) -> bool:
        return self.scorer == self.name

    def ranks_by(self) -> Scorer:
        from st3.methods.scorers import InOrder

        return InOrder() if self.decides else super().ranks_by()

    @property
    def selector(self) -> Selecting:
        return self

    def asks(self) -> tuple[str, ...]:
        """What it must see: `features`, `text`, `frames`, `grid`; of the tower, `patches`, and
        `attention LAYER` (from the class token, where there is one) or `received LAYER` (from all
        patches), a layer being `first`, `last`, `features` (whose output the projector gets) or a
        share of the depth.
        """
        return self.needs

    @abstractmethod
    def choose(self, view: View) -> Chosen:
        """Which of each pool's tokens stay, and in which order they would leave.

        Raises:
            ValueError: it needs what the model or the prompt lacks; says what.
        """
