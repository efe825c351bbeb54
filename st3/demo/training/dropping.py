"""Visual tokens dropped in the demo's training: six methods, equally often.

A model that was trained under one method's schedule and ranking flatters that method. So three
batches in ten keep everything, and each of the others draws one of the six families below with
equal chances, and its strength. Random and uniform cuts stop at 35 %, and VTW withdraws late: below
that they drop whole objects, and teach the model to guess at what it cannot see. PVTP goes down to
1 %, PyramidDrop to 3 %, FastV to 5 %.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from st3.demo.scenes import GRID
from st3.methods import make_method
from st3.methods.scorers import golden_spread

_TOKENS = GRID * GRID
_TRIMMED_SHARE = 0.7


@dataclass(frozen=True)
class Dropping:
    """What one batch drops.

    Attributes:
        name: of the method.
        keep: visual tokens of each layer.
        ranking: float32 [576], greater stays longer; None: by attention.
    """

    name: str
    keep: tuple[int, ...]
    ranking: torch.Tensor | None


def _progressive(rng: np.random.Generator, layers: int, floor: float) -> str:
    final = np.exp(rng.uniform(np.log(floor), np.log(max(0.3, floor + 0.1))))
    return f"stride={rng.integers(1, layers // 4 + 1)},final_keep={final:.4f}"


_STRENGTHS: dict[str, Callable[[np.random.Generator, int], str]] = {
    "pvtp": lambda rng, layers: _progressive(rng, layers, 0.01),
    "fastv": lambda rng, layers: f"k={rng.integers(2, layers // 2)},r={rng.uniform(0.5, 0.95):.4f}",
    "pyramiddrop": lambda rng, layers: f"ratio={rng.uniform(0.3, 0.7):.4f}",
    "vtw": lambda rng, layers: f"k={rng.integers(layers * 2 // 3, layers)}",
    "random": lambda rng, layers: _progressive(rng, layers, 0.35),
    "uniform": lambda rng, layers: _progressive(rng, layers, 0.35),
}


def random_dropping(rng: np.random.Generator, layers: int) -> Dropping | None:
    """What the next batch drops in a decoder of `layers`; None keeps everything."""
    if rng.random() >= _TRIMMED_SHARE:
        return None
    name = str(rng.choice(list(_STRENGTHS)))
    schedule = make_method(f"{name}:{_STRENGTHS[name](rng, layers)}").schedule(layers)
    ranking = None
    if name == "random":
        ranking = torch.from_numpy(rng.random(_TOKENS)).float()
    elif name == "uniform":  # as `st3.methods.scorers.UniformScorer`, from a random start
        ranking = golden_spread(torch.arange(_TOKENS) + int(rng.integers(1000)))
    keep = tuple(schedule.count(layer, _TOKENS) for layer in range(1, layers + 1))
    return Dropping(name, keep, ranking)
