"""A layer of the trimmed KV cache that sees a window of the sequence, and holds no more than that.

Sliding windows and chunks: no later token sees what lies as many places back as the window is long.
What has left it is let go for good, by what the host knows: of `visual` tokens, which lie sorted by
importance, all at once when the last of them is out; of the others, which lie in order, one by one.
Where these wait behind visual tokens that are still seen, they are masked, until room is needed.
"""

from __future__ import annotations

from typing import Any

import torch

from st3.engine.buffers import SLACK
from st3.engine.cache_layer import TrimmedLayer
from st3.engine.order import Order, to_device


def layer_for(window: int | None, last_visual: int, kind: str) -> TrimmedLayer:
    """A fresh layer that sees so many tokens, or all of them; see `WindowLayer`."""
    return TrimmedLayer(kind) if window is None else WindowLayer(window, last_visual, kind)


class WindowLayer(TrimmedLayer):
    """A `TrimmedLayer` of so many tokens.

    Args:
        window: how many tokens a token sees at most, itself included.
        last_visual: the last place of a visual token in the prompt.
        kind: how keys and values are held, one of `KV_CACHE_DTYPES`.
    """

    window: int

    def __init__(self, window: int, last_visual: int, kind: str = "auto") -> None:
        super().__init__(kind)
        self.window, self.last_visual = window, last_visual

    def store(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        *,
        seen: int,
        valid: torch.Tensor | None,
        order: Order | None,
        places: torch.Tensor | None = None,
        **more: Any,
    ) -> None:
        """As `TrimmedLayer`, without what no later token can see."""
        self.seen = seen
        if order is not None:
            order = self._in_window(order)
            self.gone = int(self._passed())
        else:
            kept = slice(max(0, key_states.shape[2] - self.window + 1), None)
            key_states, value_states = key_states[:, :, kept], value_states[:, :, kept]
            valid, places = (None if x is None else x[:, kept] for x in (valid, places))
        super().store(
            key_states, value_states, seen=seen, valid=valid, order=order, places=places, **more
        )

    def expire(self) -> None:
        """Let go what has left the window, as far as a pointer can: what is in front."""
        if self.visual and self._passed():
            self.start += self.visual
            self.visual, self.gone = 0, self.turns
        if not self.visual:
            self.start = max(self.start, self.end - self.window + 1)

    def slots_for(self, generated: int) -> int:
        """No more than the visual tokens and a window."""
        return min(super().slots_for(generated), self.visual + self.window + SLACK)

    def make_room(self, new: int) -> None:
        """Make free slots; first of all by what waits behind visual tokens."""
        if not self.visual or self.alive - self.visual < self.window:
            super().make_room(new)
            return
        parts = (
            slice(self.start, self.start + self.visual),
            slice(self.end - self.window + 1, self.end),
        )
        keys, values = (
            torch.cat([x[:, :, part] for part in parts], dim=2) for x in (self.keys, self.values)
        )
        valid, places = (
            None if x is None else torch.cat([x[:, part] for part in parts], dim=1)
            for x in (self.valid, self.places)
        )
        slots = max(self.slots_for(self.room), keys.shape[2] + new)
        self.refill(keys, values, valid, slots, places)

    def _passed(self) -> bool:
        """Whether the last visual token is out of sight of the next token."""
        return self.last_visual <= self.seen - self.window

    def _in_window(self, order: Order) -> Order:
        """The same layout without what no later token can see."""
        count = order.index.shape[1]
        first = order.visual if self._passed() else 0
        text = max(order.visual, count - self.window + 1)
        if first == 0 and text == order.visual:
            return order
        columns = [*range(first, order.visual), *range(text, count)]
        index = to_device(columns, order.index.device)
        valid = None if order.valid is None else order.valid[:, index]
        return Order(order.index[:, index], valid, order.visual - first)
