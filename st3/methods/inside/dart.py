"""DART: a few pivots by the size of their keys, and what is unlike them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from st3.methods.deciding import Deciding
from st3.methods.dial import Dial
from st3.methods.schedule import Schedule, one_cut

if TYPE_CHECKING:
    import torch

    from st3.methods.scorers import LayerView


@dataclass(frozen=True)
class Dart(Deciding):
    """One cut that keeps pivots and the tokens least like them: duplicates go, not the unattended.

    Wen et al., *Stop Looking for Important Tokens in Multimodal Language Models: Duplication
    Matters More*, EMNLP 2025. Pivots are the visual tokens, and of the text behind the pictures
    those, whose keys are largest (L1 over all heads). They share what is to stay; each takes the
    tokens of the lowest cosine to it. Pivots that are text stay anyway, and guide alone.

    Attributes:
        k: layers that see every visual token; 1 <= K < L.
        keep: the share that stays behind them.
        pivots, text_pivots: how many of either kind.
    """

    name: ClassVar[str] = "dart"
    source: ClassVar[str] = "DART, arXiv 2502.11494"
    needs: ClassVar[tuple[str, ...]] = ("states",)
    across_ranks: ClassVar[bool] = True
    is_set: ClassVar[bool] = True
    differs: ClassVar[str] = (
        "exactly the asked number stays, pivots take in the order of their size, visual ones "
        "first, and the first ones one more; the authors' count misses by up to a pivot's part, "
        "and its order is that of a set"
    )
    published: ClassVar[Mapping[str, str]] = {
        "192": "keep=33.3%",
        "128": "keep=22.2%",
        "64": "keep=11.1%",
    }

    dial: ClassVar[Dial | None] = Dial("keep", 0.0, 1.0)

    k: int = 2
    keep: float = 0.222
    pivots: int = 4
    text_pivots: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pivots < 0 or self.text_pivots < 0 or self.pivots + self.text_pivots < 1:
            raise ValueError(
                f"dart: give at least one pivot, got {self.pivots} and {self.text_pivots} of text"
            )

    def schedule(self, layers: int) -> Schedule:
        return one_cut(self.name, layers, self.k, self.keep)

    def score(self, view: LayerView) -> torch.Tensor:
        import torch

        from st3.methods.pivots import largest, unlike
        from st3.methods.view import fixed, units

        device, tokens = view.visual.device, view.visual.shape[1]
        here = view.visual if view.valid is None else view.visual & view.valid[:, -tokens:]
        size = view.merged(view.key[:, :, -tokens:].float().abs().sum(-1))
        counts = fixed(view.counts or view.before, device)
        first, real = largest(size, here, min(self.pivots, tokens))
        number = torch.arange(first.shape[1], device=device)
        real = real & (number < counts[:, None])
        text = torch.zeros_like(here)
        text[:, -view.trailing :] = view.asks()
        guides, guiding = largest(size, text, min(self.text_pivots, tokens))
        unit = units(view.look.normed(), torch.ones_like(here))
        rows = torch.arange(len(here), device=device)[:, None]
        both = unit[rows, torch.cat((first, guides), 1)]
        chosen = torch.zeros_like(here).scatter_(1, first, real)
        # Pivots that are none must not stand before those that are.
        known = torch.cat((real, guiding), 1)
        sorted_ = known.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
        order = unlike(
            unit, here & ~chosen, both[rows, sorted_], known.gather(1, sorted_),
            (counts - real.sum(1)).clamp_min(0),
        )  # fmt: skip
        standing = torch.zeros_like(order).scatter_(1, first, number.expand_as(first))
        order = torch.where(chosen, standing, order + first.shape[1])
        return -order.float()


METHOD = Dart
