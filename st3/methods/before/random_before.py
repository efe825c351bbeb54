"""Random, before the decoder: the floor for every choice there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

from st3.methods.selecting import Chosen, Selecting

if TYPE_CHECKING:
    from st3.methods.view import View


@dataclass(frozen=True)
class RandomBefore(Selecting):
    """Tokens drawn by lot: the same places in every picture of a size, on every device.

    `random` draws in the decoder, on ST3's schedule. An order.

    Attributes:
        seed: of the lots.
    """

    name: ClassVar[str] = "random-before"
    source: ClassVar[str] = "baseline"
    needs: ClassVar[tuple[str, ...]] = ("features",)

    seed: int = 0

    def choose(self, view: View) -> Chosen:
        from st3.methods.greedy import rows_of
        from st3.methods.view import fixed

        drawn = [_drawn(self.seed, size) for size in view.sizes]
        return Chosen(rows_of([fixed(order, view.valid.device) for order in drawn], view.most))


@lru_cache(maxsize=64)
def _drawn(seed: int, size: int) -> tuple[int, ...]:
    """So many numbers in an order by lot, made on the CPU."""
    import torch

    lots = torch.rand(size, generator=torch.Generator().manual_seed(seed)).tolist()
    return tuple(sorted(range(size), key=lambda number: lots[number]))


METHOD = RandomBefore
