"""A decode step that is replayed, and the tensors at fixed addresses that it reads and writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from st3.engine.cache_layer import TrimmedLayer
from st3.engine.static_cache import Slots
from st3.methods.schedule import Group


class RecordedStep:
    """What one recording belongs to.

    Args:
        layers: of the cache; `groups`: those that share a choice of tokens.

    Attributes:
        slots: of every group.
        hidden: [B, 1, d], the token's embedding. `position`: its position. `t`: int64 [1], the
            generated tokens with it.
        output: [B, 1, d]. `kind`: what the decoder returns it in.
        replay: runs the step; None until it has been recorded.
    """

    def __init__(self, layers: Sequence[TrimmedLayer], groups: Sequence[Group]) -> None:
        self.slots = [Slots(layers[group.first - 1]) for group in groups]
        self.hidden = self.position = self.t = self.output = torch.empty(0)
        self.kind: Any = None
        self.replay: Callable[[], None] | None = None
        self._buffers = _buffers(layers)

    def fits(self, layers: Sequence[TrimmedLayer]) -> bool:
        """Whether these layers lie where those did that it was made for."""
        return self._buffers == _buffers(layers)

    @property
    def horizon(self) -> int:
        """The largest t whose token has a slot in every layer."""
        return min(slots.horizon for slots in self.slots)

    def feed(self, hidden: torch.Tensor, position: torch.Tensor, t: int) -> bool:
        """Put in a token; false if it took new addresses, so that no recording is good for it."""
        same = self.replay is not None and self.position.shape == position.shape
        if not same:
            self.hidden, self.position = hidden.clone(), position.clone()
            self.t = torch.full((1,), t, device=hidden.device)
        self.t.fill_(t)
        self.hidden.copy_(hidden)
        self.position.copy_(position)
        return same


def _buffers(layers: Sequence[TrimmedLayer]) -> list[tuple[Any, ...]]:
    """Of every layer's keys and values: address, shape, dtype, whether made for inference."""
    return [
        (states.data_ptr(), states.shape, states.dtype, states.is_inference())
        for layer in layers
        for states in (layer.keys, layer.values)
    ]
