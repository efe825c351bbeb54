"""FitPrune: how many leave each layer is fitted beforehand, to what attention loses by it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from st3.methods.deciding import Deciding
from st3.methods.schedule import Schedule, tidy

if TYPE_CHECKING:
    import torch

    from st3.methods.scorers import LayerView

_DEMO = (
    1.0, 0.645, 0.566, 0.47, 0.394, 0.394, 0.394, 0.376,
    0.375, 0.375, 0.37, 0.369, 0.369, 0.363, 0.363, 0.363,
    0.363, 0.363, 0.363, 0.348, 0.348, 0.348, 0.348, 0.348,
    0.348, 0.348, 0.348, 0.348, 0.348, 0.348, 0.348, 0.348,
)  # fmt: skip
"""Keep ratios of 32 layers, fitted on 46 questions about the packaged demo's scenes, to a mean of
40 % (ours): `python -m st3.sweep.calibrate --scenes 46 --output table.json`."""


@dataclass(frozen=True)
class FitPrune(Deciding):
    """A few leave before every layer, as many as a table says that was fitted to attention.

    Ye et al., *Fit and Prune: Fast and Training-free Visual Token Pruning for Multi-modal Large
    Language Models*, AAAI 2025. What leaves has the least product of two sums: of the attention
    that it gets from the words behind the picture, and from visual tokens, of each row the
    strongest head's. All rows of attention are computed once more, some at a time, in every layer
    behind which something leaves: about what its logits cost, in fp32.

    Attributes:
        table: a JSON file with the keep ratio of each layer, as `python -m st3.sweep.calibrate`
            writes one for a model; or `demo`, which was fitted on the packaged demo.
    """

    name: ClassVar[str] = "fitprune"
    source: ClassVar[str] = "FitPrune, arXiv 2409.10197"
    across_ranks: ClassVar[bool] = True
    differs: ClassVar[str] = (
        "tables are fitted here to a mean share of tokens and not to FLOPs, and stretched to other "
        "depths; the authors' tables for LLaVA-1.5 are not included"
    )

    table: str = "demo"

    def schedule(self, layers: int) -> Schedule:
        keeps = self._keeps()
        step = len(keeps) / layers
        return Schedule(tuple(keeps[int(n * step)] for n in range(layers)))

    def settings(self, layers: int) -> dict[str, Any]:
        return super().settings(layers) | {"keeps": list(self.schedule(layers).keeps)}

    def _keeps(self) -> tuple[float, ...]:
        if self.table == "demo":
            return _DEMO
        try:
            found = json.loads(Path(self.table).read_text(encoding="utf-8"))["keeps"]
            keeps = tuple(float(keep) for keep in found)
            if keeps:
                return keeps
        except OSError as error:
            raise ValueError(f"fitprune: cannot read {self.table}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError):
            pass
        raise ValueError(
            f'fitprune: {self.table} has no "keeps", one share a layer; '
            "`python -m st3.sweep.calibrate` writes such a file"
        )

    def score(self, view: LayerView) -> torch.Tensor:
        words = view.received(view.asks().float(), "max")
        here = view.visual
        if view.valid is not None:
            here = here & view.valid[:, -here.shape[1] :]
        return words * view.received(here.float(), "max")


def fitted_keeps(masses: Sequence[Sequence[tuple[Any, Any]]], mean: float) -> list[float]:
    """Keep ratios of the layers, 1 in the first, whose mean is at most `mean`.

    Before a layer as many leave as lose, in the layer before it, less than a share alpha of either
    attention: the longest lists of the least attended, of which both have them. The least alpha
    that reaches the mean is found by halving. Counts are averaged over examples (ours).

    Args:
        masses: of each layer, of each example, attention that its visual tokens get from words and
            from each other, float [N] both.
        mean: share of the visual tokens over all layers.

    Raises:
        ValueError: no such mean can be, as the first layer keeps all.
    """
    layers = len(masses)
    if not 1 / layers <= mean <= 1:
        raise ValueError(
            f"the first of {layers} layers keeps all: a mean from {1 / layers:.3g} to 1 can be "
            f"reached, got {mean:g}"
        )

    def keeps(alpha: float) -> list[float]:
        found = [1.0]
        for of_layer in masses[:-1]:
            gone = [_common(words, among, alpha) for words, among in of_layer]
            found.append(min(found[-1], tidy(1 - sum(gone) / len(gone))))
        return found

    return _least(keeps, mean)


def _least(keeps: Callable[[float], list[float]], mean: float) -> list[float]:
    low, high = 0.0, 1.0
    for _ in range(40):
        alpha = (low + high) / 2
        found = keeps(alpha)
        low, high = (alpha, high) if sum(found) / len(found) > mean else (low, alpha)
    return keeps(high)


def _common(words: Any, among: Any, alpha: float) -> float:
    """Share of the tokens that may leave by both lists."""
    import torch

    both = torch.ones(len(words), dtype=torch.bool)
    for mass in (words, among):
        values, order = mass.double().sort(stable=True)
        lost = values.cumsum(0) / values.sum().clamp_min(torch.finfo(torch.float64).tiny)
        gone = torch.zeros(len(mass), dtype=torch.bool)
        gone[order] = lost <= alpha * (1 + 1e-12)
        both &= gone
    return float(both.double().mean())


METHOD = FitPrune
