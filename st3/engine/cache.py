"""The trimmed KV cache: layers of different lengths, and the length of the sequence untrimmed."""

from __future__ import annotations

from typing import Any, cast

import torch
from transformers.cache_utils import Cache

from st3.engine.cache_layer import TrimmedLayer


class TrimmedCache(Cache):
    """A `Cache` of `TrimmedLayer`s: what `generate` carries along inside `st3.trim`.

    Layers that keep a state instead of tokens are transformers' own.

    `closed` says why it cannot be used any more, None while it can.
    """

    layers: list[Any]

    def __init__(self, layers: list[Any]) -> None:
        super().__init__(layers=layers)
        self.closed: str | None = None

    @classmethod
    def in_place_of(cls, cache: Cache | None, layers: list[Any]) -> TrimmedCache:
        """A cache with these layers that is the same object as `cache`, if there is one.

        Whoever handed an empty cache to `generate` holds on to it, for the next turn: what is
        filled must be that one.
        """
        if cache is None:
            return cls(layers)
        cache.__class__ = cls
        made = cast(TrimmedCache, cache)
        made.layers, made.closed = layers, None
        return made

    def close(self, why: str) -> None:
        """Free everything; any further use raises, and says why."""
        self.closed = why
        self.reset()

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `TrimmedLayer.update`.

        Raises:
            RuntimeError: it is closed.
        """
        if self.closed is not None:
            raise RuntimeError(f"{self.closed}: start with the whole prompt")
        found: tuple[torch.Tensor, torch.Tensor] = self.layers[layer_idx].update(
            key_states, value_states, *args, **kwargs
        )
        return found

    def trimmed(self, first: int = 1, last: int | None = None) -> list[TrimmedLayer]:
        """The layers `first`..`last` (from 1) that hold keys and values of tokens."""
        layers = self.layers[first - 1 : last]
        return [x for x in layers if isinstance(x, TrimmedLayer) and x.is_initialized]

    @property
    def live_bytes(self) -> int:
        """Bytes of the keys and values that are alive."""
        return sum(layer.live_bytes for layer in self.trimmed())

    @property
    def allocated_bytes(self) -> int:
        """Bytes of all buffers, free slots included."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.trimmed())
