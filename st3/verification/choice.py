"""The oracles' own choice of tokens, and where they give way to that of the engine.

Two scores at a cut may differ by less than rounding; either choice is right then. An oracle that is
told what the engine kept takes its side among tokens that close to the cut, and counts how often it
did. Whatever lies further away stays the oracle's own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

Told = Callable[[int, int, int], list[int]]
"""Layer from 1, row, generated tokens -> numbers of the visual tokens that the engine kept."""
SCORERS = (
    "last-token", "last-token-max", "last-token-3-layers", "prompt", "prompt-3-layers", "random",
    "uniform", "key-norm", "frames-in-turn",
)  # fmt: skip
"""Those that the oracles can work out for themselves."""
_SUMMED = 3
_GOLDEN = (5**0.5 - 1) / 2
_DRAW = 0  # seed of the lot


@dataclass
class Choice:
    """How tokens are chosen.

    Attributes:
        scorer: one of `SCORERS`.
        told: what the engine kept; None: the oracle is told nothing.
        tolerance: relative distance from the cut within which `told` decides; 0: nowhere.
        ties: how many tokens were kept on its word, over all cuts.
    """

    scorer: str = "last-token"
    told: Told | None = None
    tolerance: float = 0.0
    ties: int = field(default=0, init=False)

    @property
    def layers(self) -> int:
        """Scores of so many layers, up to the one that decides, are added."""
        return _SUMMED if self.scorer.endswith("3-layers") else 1

    def score(
        self, weights: torch.Tensor, key: torch.Tensor, visual: torch.Tensor
    ) -> list[list[float]]:
        """What one layer says of every token of the prompt, [B][n]; only visual ones matter.

        Args:
            weights: [B, heads, n, n], attention after softmax.
            key: [B, key heads, n, head size], after RoPE.
            visual: bool [B, n].
        """
        rows, tokens = visual.shape
        if self.scorer in ("random", "uniform"):
            most = int(visual.sum(1).max())
            draws = torch.rand(most, generator=torch.Generator().manual_seed(_DRAW)).tolist()
            said = [[0.0] * tokens for _ in range(rows)]
            for row in range(rows):
                for number, place in enumerate(visual[row].nonzero().flatten().tolist()):
                    even = number * _GOLDEN % 1
                    said[row][place] = draws[number] if self.scorer == "random" else even
            return said
        if self.scorer == "key-norm":
            found = -key.float().norm(dim=-1).mean(1)
        elif self.scorer.startswith("prompt"):
            last = torch.where(visual, torch.arange(tokens, device=visual.device), -1).amax(1)
            behind = torch.arange(tokens, device=visual.device) > last[:, None]
            behind[:, -1] = True  # a prompt that ends with its picture
            found = (weights.mean(1) * behind[:, :, None]).sum(1)
        else:
            last_row = weights[:, :, -1]
            found = last_row.amax(1) if self.scorer == "last-token-max" else last_row.mean(1)
        scores: list[list[float]] = found.tolist()
        if self.scorer == "frames-in-turn":
            return [
                _in_turn(said, here) for said, here in zip(scores, visual.tolist(), strict=True)
            ]
        return scores

    def pick(
        self,
        pool: Sequence[int],
        scores: Sequence[float],
        count: int,
        preferred: Callable[[], list[int]],
    ) -> list[int]:
        """The `count` most important places of a pool, least first.

        Args:
            pool: places.
            scores: by place.
            count: how many stay.
            preferred: places that the engine kept.
        """
        ranked = sorted(pool, key=lambda place: (scores[place], -place))
        if count >= len(ranked) or count == 0:
            return ranked[len(ranked) - count :] if count else []
        first = len(ranked) - count
        if self.told is None or not self.tolerance:
            return ranked[first:]
        lost, least = scores[ranked[first - 1]], scores[ranked[first]]

        def near(score: float, border: float) -> bool:
            return abs(score - border) <= self.tolerance * max(abs(border), sys.float_info.min)

        sure = [place for place in ranked[first:] if not near(scores[place], lost)]
        close = [place for place in ranked[first:] if near(scores[place], lost)]
        close += [place for place in ranked[:first] if near(scores[place], least)]
        theirs = {*preferred()}
        close.sort(key=lambda place: (place in theirs, scores[place], -place), reverse=True)
        chosen = {*sure, *close[: count - len(sure)]}
        self.ties += len(chosen - {*ranked[first:]})
        return [place for place in ranked if place in chosen]


def _in_turn(scores: Sequence[float], visual: Sequence[bool]) -> list[float]:
    """One row's scores where pictures take turns; what lies together is one picture."""
    ranked = sorted((n for n, here in enumerate(visual) if here), key=lambda n: (-scores[n], n))
    pictures = [0] * len(visual)
    for place in range(1, len(visual)):
        pictures[place] = pictures[place - 1] + (visual[place] and not visual[place - 1])
    found, taken = [0.0] * len(visual), dict.fromkeys(pictures, 0)
    for standing, place in enumerate(ranked):
        found[place] = -(taken[pictures[place]] + standing / len(visual))
        taken[pictures[place]] += 1
    return found
