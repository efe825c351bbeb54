"""How many visual tokens are alive in each layer after each generated token: pure arithmetic.

A `Schedule` is all that the rest of the library needs to know of a trimming method besides which
tokens it prefers. Layers count from 1 here, as in the paper. Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from st3.methods.budget import ALL, Budget, Piece

FIRST_PRUNED_LAYER = 4
"""Layers 1-3 keep all visual tokens (paper)."""

ANNEALINGS: dict[str, Callable[[float], float]] = {
    "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
    "quarter-cosine": lambda x: math.cos(math.pi * x / 2) if x < 1 else 0.0,
    "linear": lambda x: 1 - x,
    "step": lambda x: 1.0 if x < 1 else 0.0,
    "none": lambda x: 1.0,
}
"""Name -> share of visual tokens left at x = min(t, tau) / tau. The paper says "cosine" and no
more; `cosine` is the half cosine of SGDR (ours), the others are for comparison (ours)."""


@dataclass(frozen=True)
class Group:
    """Layers `first`..`last` (from 1, inclusive) that share one choice of visual tokens.

    `scored_in` is the layer whose attention orders the group's tokens: the one before the group
    or, for a group that starts at layer 1, the last layer that never prunes (ours). 0 is the stage
    before the decoder: their order is known when they enter.
    """

    first: int
    last: int
    keep: float
    scored_in: int


@dataclass(frozen=True)
class Schedule:
    """Share of the visual tokens alive in each layer, and how it falls as tokens are generated.

    Attributes:
        keeps: keep ratio of each layer, of the tokens that enter layer 1: 1 there, in 0..1, never
            rising.
        tau: after this many generated tokens no visual token is left; None for no annealing.
        annealing: a key of `ANNEALINGS`.
        entering: layer 0, what a selector leaves before the decoder; all, if there is none.

    Raises:
        ValueError: keeps that rise or leave 0..1, a tau below 1, an unknown annealing.
    """

    keeps: tuple[float, ...]
    tau: int | None = None
    annealing: str = "cosine"
    entering: Budget = ALL

    def __post_init__(self) -> None:
        if not self.keeps or not all(0 <= k <= 1 for k in self.keeps):
            raise ValueError(f"keep ratios must lie in 0..1, got {self.keeps}")
        if self.keeps[0] != 1:
            raise ValueError(
                f"layer 1 must keep all that enters: nothing has been scored, got {self.keeps[0]}"
            )
        if any(b > a for a, b in zip(self.keeps, self.keeps[1:], strict=False)):
            raise ValueError(f"keep ratios must not rise with depth, got {self.keeps}")
        if self.tau is not None and self.tau < 1:
            raise ValueError(f"tau must be at least 1 token, got {self.tau}; or use 'none'")
        if self.annealing not in ANNEALINGS:
            raise ValueError(
                f"unknown annealing {self.annealing!r}; known: {', '.join(ANNEALINGS)}"
            )

    @property
    def layers(self) -> int:
        """Number of decoder layers L."""
        return len(self.keeps)

    @property
    def anneals(self) -> bool:
        """Whether visual tokens leave while tokens are generated."""
        return self.tau is not None and self.annealing != "none"

    @property
    def mean_keep(self) -> float:
        """Keep ratio averaged over layers, at prefill, of the tokens that enter layer 1."""
        return sum(self.keeps) / self.layers

    @property
    def inside(self) -> Schedule:
        """The same for tokens that have entered the decoder."""
        return self if self.entering == ALL else replace(self, entering=ALL)

    def with_entered(self, tokens: int) -> Schedule:
        """The same where so many of a prompt's visual tokens were seen to enter the decoder."""
        return replace(self, entering=Budget(tokens=tokens, per="prompt"))

    def share(self, generated: int) -> float:
        """a(t): the share of each layer's visual tokens left after `generated` tokens, 0..1."""
        if not self.anneals or self.tau is None:
            return 1.0
        return ANNEALINGS[self.annealing](min(generated, self.tau) / self.tau)

    def count(
        self, layer: int, visual: int, generated: int = 0, pictures: int = 1,
        like: Piece | None = None,
    ) -> int:  # fmt: skip
        """Visual tokens alive in `layer` (from 1) of `visual`, after `generated` tokens.

        Before layer 1 they were `visual`, of so many pictures of about one size, each `like` that.
        """
        if self.entering != ALL:
            visual = self.entering.of_alike(visual, pictures, like)
        return round(self.keeps[layer - 1] * visual * self.share(generated))

    def fitted(self, seeing: Sequence[int], last_cut: int | None = None) -> Schedule:
        """The same schedule for a model in which not every layer can decide.

        Args:
            seeing: layers (from 1) whose attention sees every token of the prompt. A cut before
                the first of them waits for it (ours); where there is none, nothing waits.
            last_cut: no cut behind this layer, if given.
        """
        first = min(seeing, default=0)
        keeps = [1.0 if n <= first else keep for n, keep in enumerate(self.keeps, 1)]
        if last_cut is not None:
            keeps[last_cut:] = [keeps[last_cut - 1]] * (self.layers - last_cut)
        return self if tuple(keeps) == self.keeps else replace(self, keeps=tuple(keeps))

    def groups(
        self, seeing: Sequence[int] | None = None, *, ordered: bool = False
    ) -> tuple[Group, ...]:
        """The runs of layers with one keep ratio, in order.

        Args:
            seeing: layers (from 1) whose attention sees every token; each group is scored in the
                last of them before it, or, where there is none, as if all did. None: all do.
            ordered: whether all is decided before layer 1.
        """
        starts = [1] + [i + 1 for i in range(1, self.layers) if self.keeps[i] != self.keeps[i - 1]]
        ends = [start - 1 for start in starts[1:]] + [self.layers]
        first_score = min(FIRST_PRUNED_LAYER - 1, ends[0] if len(starts) > 1 else self.layers)

        def decides(layer: int, last: int) -> int:
            """The last layer up to `layer` that sees everything, or else the first up to `last`."""
            if ordered:
                return 0
            before = [n for n in seeing or () if n <= last]
            return max((n for n in before if n <= layer), default=min(before, default=layer))

        return tuple(
            Group(
                a, b, self.keeps[a - 1], decides(a - 1, a - 1) if a > 1 else decides(first_score, b)
            )
            for a, b in zip(starts, ends, strict=True)
        )


def one_cut(name: str, layers: int, k: int, keep: float) -> Schedule:
    """All in the first `k` layers, and a share `keep` behind them.

    Raises:
        ValueError: there is no such layer, or no such share; `name` is the method's.
    """
    if not 1 <= k < layers:
        raise ValueError(f"{name}: K must lie in 1..{layers - 1} for {layers} layers, got {k}")
    if not 0 <= keep <= 1:
        raise ValueError(f"{name}: what stays must lie between 0 and 1, got {keep:g}")
    return Schedule((1.0,) * k + (tidy(keep),) * (layers - k))


def tidy(share: float) -> float:
    """Free of float noise, so that half a token rounds as it does on paper."""
    tidy = round(share, 12)
    return 0.0 if tidy == 0 else tidy
