"""Methods that choose before the decoder: a budget, and an order of a picture's visual tokens.

Such a method is its own selector: its fields are the parameters, `choose` is the algorithm. The
file of a method lies in `st3.methods.before`. No torch is imported to list them: `choose` imports
what it computes with.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from st3.methods.base import OwnRule
from st3.methods.budget import Budget, read_keep
from st3.methods.dial import Dial
from st3.methods.merge import Merge as Merge
from st3.methods.schedule import Schedule

if TYPE_CHECKING:
    import torch

    from st3.methods.scorers import Scorer
    from st3.methods.view import View

ADAPTIVE = "adaptive"
"""A `keep` that leaves it to the method how many stay."""
POSITIONS = ("original", "compact")
"""Positions of what stays: those of the untrimmed prompt, or counted anew without gaps."""


@dataclass(frozen=True)
class Chosen:
    """What a selector says of G pools.

    Attributes:
        picks: int64 [G, m], tokens of each pool by falling importance, m at least the largest
            count.
        merge: what is added to what stays, None for nothing.
        counts: how many of each pool's picks enter; asked for where the budget is adaptive.
    """

    picks: torch.Tensor
    merge: Merge | None = None
    counts: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Selecting(OwnRule):
    """Visual tokens are chosen before layer 1, and no others ever reach the decoder.

    Attributes:
        scorer: what orders those that stay, where they leave later (`tau`); by default the method
            itself, and otherwise any scorer.
        keep: a share of the visual tokens such as 0.11 or 11%, or a number of them such as 64; or
            `adaptive`, where the method can decide that itself.
        per: what `keep` is spent on, one of `st3.methods.budget.PER`.
        positions: one of `POSITIONS`.
        tau, annealing: as for `VTA`; no annealing unless asked for.
    """

    stage: ClassVar[str] = "before the decoder"
    adapts: ClassVar[bool] = False
    """Whether it can decide how many stay."""
    spares: ClassVar[str] = ""
    """What stays on top of its budget, one of `st3.methods.budget.SPARES`; with `pictures`, it
    chooses by motion, and each video is a piece by itself."""

    dial: ClassVar[Dial | None] = Dial("keep", 1e-6, 1.0)

    keep: float | int | str = "25%"
    per: str = "picture"
    positions: str = "original"
    tau: int | None = None
    annealing: str = "cosine"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.decides and hasattr(self._other(), "choose"):
            raise ValueError(
                f"{self.name} chooses before the decoder itself, and no order of {self.scorer!r} "
                "beside its own: take a scorer of the decoder, such as last-token, or "
                f"{self.scorer!r} in its place"
            )
        budget = self.budget()
        if isinstance(self.keep, str) and budget.tokens is not None:
            object.__setattr__(self, "keep", budget.tokens)
        Schedule((1.0,), self.tau, self.annealing)
        if self.positions not in POSITIONS:
            raise ValueError(
                f"positions must be one of {', '.join(POSITIONS)}, got {self.positions!r}"
            )

    def budget(self) -> Budget:
        """What `keep` and `per` ask for."""
        if self.adapts and self.keep == ADAPTIVE:
            return Budget(per=self.per, adaptive=True)
        share, tokens = read_keep(self.keep)
        return Budget(share, tokens, self.per, spares=self.spares)

    def schedule(self, layers: int) -> Schedule:
        return Schedule((1.0,) * layers, self.tau, self.annealing, self.budget())

    def settings(self, layers: int) -> dict[str, Any]:
        budget = self.budget()
        keep = budget.tokens if budget.share is None else budget.share
        return super().settings(layers) | {"keep": ADAPTIVE if budget.adaptive else keep}

    def ranks_by(self) -> Scorer:
        from st3.methods.scorers import InOrder

        return InOrder() if self.decides else super().ranks_by()

    @property
    def selector(self) -> Selecting:
        return self

    def asks(self) -> tuple[str, ...]:
        """What it must see: `features`, `text`, `frames` (which one a token is of), `videos` (which
        frames make one), `grid`; of the tower, `patches`, and of its layers `attention LAYER` (from
        the class token, where there is one), `joint LAYER` (the same, all heads as one), `received
        LAYER` (from all patches) or `keys LAYER`, a layer being `first`, `last`, `features` (whose
        output the projector gets) or a share of the depth.
        """
        return self.needs

    @abstractmethod
    def choose(self, view: View) -> Chosen:
        """Which of each pool's tokens stay, and in which order they would leave.

        Raises:
            ValueError: it needs what the model or the prompt lacks; says what.
        """
