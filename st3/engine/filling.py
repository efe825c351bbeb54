"""From the layers of a forward that brings visual tokens into the cache, in the order of leaving.

Layers before the one that decides their order wait for it; from then on each goes straight into its
buffer. In a later turn the tokens lie at the end already, and go among those of earlier turns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from st3.engine.cache import TrimmedCache
from st3.engine.order import Order, merged
from st3.engine.record import Record
from st3.engine.turn import Turn


class Filling:
    """Fills the cache of one forward.

    Args:
        record: of the generation. `turn`: its turn that begins.
        cache: to be filled.
    """

    def __init__(self, record: Record, turn: Turn, cache: TrimmedCache) -> None:
        self.record, self.turn, self.cache = record, turn, cache
        self._last = max(record.plan.parts.keyed)
        self._waiting: list[tuple[int, bool]] = []  # layer, whether masks will ask for places
        self._merged: dict[tuple[int, ...], Order] = {}  # what some layers share

    def wait(self, layer: int, placed: bool) -> None:
        """A layer has its keys and values; `placed`: masks will ask where its tokens stood."""
        self._waiting.append((layer, placed))

    def store(
        self,
        order: Order | None,
        place: torch.Tensor,
        valid: torch.Tensor | None,
        capacity: Callable[[int], int],
    ) -> None:
        """Put what waits into the cache; its layers share their tokens.

        Args:
            order: how they will leave; None where none will.
            place: int64 [B, n], where they stood. `valid`: bool [B, n], or None if each is one.
            capacity: generated tokens -> the most tokens alive at once until then.
        """
        for layer, placed in self._waiting:
            if self.turn.base:
                self._merge(layer, order, place.shape[1])
                continue
            cached = self.cache.layers[layer - 1]
            if cached.offered is None:
                raise RuntimeError(f"layer {layer} has attended without filling the KV cache")
            cached.store(
                *cached.offered,
                seen=self.turn.prompt.tokens,
                capacity=capacity,
                room=self.record.plan.max_new_tokens,
                valid=valid,
                order=order,
                places=place if placed else None,
            )
        if self._waiting and self._waiting[-1][0] == self._last:
            self.record.record_bytes()
        self._waiting.clear()

    def _merge(self, layer: int, order: Order | None, tokens: int) -> None:
        """A later turn's tokens lie at the end; where they will leave, among the others."""
        if order is None:
            return
        cached, record = self.cache.layers[layer - 1], self.record
        live = cached.alive - tokens
        key = record.run(layer)[0], cached.gone, cached.visual, live
        if key not in self._merged:
            self._merged = {
                key: merged(
                    order,
                    record.leaving(layer, record.turns[cached.gone : -1]),
                    record.leaving(layer, [self.turn]),
                    cached.visual,
                    live,
                    cached.live_valid(),
                )
            }
        last_visual = self.turn.base + self.turn.prompt.last_visual
        cached.lay_out(self._merged[key], record.generated, last_visual)


def most_alive(schedule: Any, layer: int, visual: int, text: int, generated: int) -> int:
    """The most tokens alive at once in `layer` until `generated` tokens, in the widest row.

    `visual` of them entered layer 1, beside `text` others.
    """
    if not schedule.anneals:
        return int(schedule.count(layer, visual)) + text + generated
    return max(int(schedule.count(layer, visual, t)) + text + t for t in range(generated + 1))
