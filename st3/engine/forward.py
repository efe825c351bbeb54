"""One forward of a decoder under trimming: a prefill, a decode step or a user's next turn.

It is made before the decoder runs and goes along as an argument to every layer, so nothing about a
generation is kept in the model: forwards of several threads do not meet.
"""

from __future__ import annotations

from typing import Any

import torch

from st3.engine.attention import FORWARD, stand_in, stock_attention
from st3.engine.cache import TrimmedCache
from st3.engine.kernels import call_attention
from st3.engine.masks import attention_mask
from st3.engine.prefill import Prefill
from st3.engine.record import Record
from st3.engine.session import TrimSession
from st3.engine.static_cache import StaticLayer

NO_MASK = torch.empty(1, 1, 1, 1)
"""In the place of a decoder's mask: being 4-D it keeps transformers from making one."""


class Forward:
    """What the layers of one forward need to know.

    Args:
        session: of the `with`.
        record: of the generation.
        backend: the attention implementation that the model had before.
        cache: what is filled or read, None without one.
        prefill: the tokens alive, None for later forwards.
    """

    def __init__(
        self,
        session: TrimSession,
        record: Record,
        backend: str,
        cache: TrimmedCache | None,
        prefill: Prefill | None = None,
    ) -> None:
        self.session, self.record, self.backend = session, record, backend
        self.cache, self.prefill = cache, prefill

    def arguments(self) -> dict[str, Any]:
        """What the decoder is to be called with."""
        return {"past_key_values": self.cache, "attention_mask": NO_MASK, FORWARD: self}

    def enter_layer(self, number: int, hidden: Any, kwargs: dict[str, Any]) -> Any:
        """Hidden states [B, n, d] of the tokens that a layer keeps; its arguments follow them."""
        if self.prefill is None:
            return hidden
        hidden, turns = self.prefill.enter_layer(number, hidden, kwargs["position_embeddings"])
        kwargs["position_embeddings"] = turns
        # Positions with gaps look like packed sequences to FlashAttention's wrapper.
        kwargs["position_ids"] = None
        return hidden

    def attend(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        **kwargs: Any,
    ) -> Any:
        """One layer's attention, with our mask and, at prefill, our scoring and cache."""
        layer = module.layer_idx + 1
        function = stock_attention(module, self.backend)
        if self.prefill is not None:
            self.prefill.observe(layer, query, key, value, kwargs["scaling"])
            valid = self.prefill.valid
        else:
            assert self.cache is not None
            cached = self.cache.layers[layer - 1]
            if isinstance(cached, StaticLayer):
                bias = cached.slots.bias
                return call_attention(function, module, query, key, value, bias, **kwargs)
            valid = cached.live_valid()
        if self.session.observer is not None:
            self.session.observer(layer, query, key, kwargs["scaling"], valid)
        if not query.dtype == key.dtype == value.dtype and not torch.is_autocast_enabled(
            query.device.type
        ):  # a prefill under autocast, and a step without
            key, value = key.to(query.dtype), value.to(query.dtype)
        mask = attention_mask(valid, query, key, self.backend)
        if self.backend.startswith("flash"):
            return function(stand_in(module, self.backend), query, key, value, mask, **kwargs)
        return call_attention(function, module, query, key, value, mask, **kwargs)
