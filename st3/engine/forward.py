"""One forward of a decoder under trimming: a prefill, a decode step or a user's next turn.

Where it brings visual tokens, a `Prefill` thins them out, in a later turn as in the first.

It is made before the decoder runs and goes along as an argument to every layer, so nothing about a
generation is kept in the model: forwards of several threads do not meet.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from st3.engine.attention import FORWARD, stand_in, stock_attention
from st3.engine.cache import TrimmedCache
from st3.engine.insight import without_positions
from st3.engine.kernels import call_attention
from st3.engine.masks import CAUSAL, MaskRule, attention_mask, in_form, rule_mask
from st3.engine.packed import Packed
from st3.engine.prefill import Prefill
from st3.engine.record import Record
from st3.engine.session import TrimSession
from st3.engine.static_cache import StaticLayer

_FOLLOWING = (("position_embeddings", 1), ("position_ids", 0))
"""Arguments of layers that belong to tokens, and how many dimensions come behind these."""


class Forward:
    """What the layers of one forward need to know.

    Args:
        session: of the `with`.
        record: of the generation.
        backend: the attention implementation that the model had before.
        cache: what is filled or read, None without one.
        prefill: the tokens alive, None for a forward without visual tokens after the first.
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
        # Of a step: what holds code for its layers, and whoever attends while one is traced.
        self.code: Any = None
        self.attention: Callable[..., Any] | None = None
        self.parts = record.plan.parts
        self._masks: dict[tuple[int, int, torch.device], torch.Tensor] = {}
        self._lines: dict[tuple[int, torch.device], Packed] = {}

    def arguments(self) -> dict[str, Any]:
        """What the decoder is to be called with."""
        return {"past_key_values": self.cache, FORWARD: self}

    def enter_layer(self, number: int, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a layer, by name, for the tokens that it keeps."""
        if self.prefill is None:
            return arguments
        hidden = self.prefill.enter_layer(number, arguments["hidden_states"])
        changed: dict[str, Any] = {"hidden_states": hidden}
        for name, behind in (*_FOLLOWING, *self.parts.adapter.token_arguments):
            if arguments.get(name) is not None:
                changed[name] = self.prefill.follow(arguments[name], behind)
        if number in self.parts.recurrent:
            changed["attention_mask"] = self.prefill.now.valid
        named = arguments | changed
        if "unrotated" in self.prefill.scoring.scorer.needs:
            self.prefill.scoring.again = partial(
                without_positions, self.parts.layers[number - 1], {**named}
            )
        return named

    def attend(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        rule: Any,
        **kwargs: Any,
    ) -> Any:
        """One layer's attention, with our mask and, at prefill, our scoring and cache.

        `rule` is what our mask function made: a `MaskRule`, or None for mere causality.
        """
        layer = module.layer_idx + 1
        backend = self.backend
        if self.prefill is not None:
            self.prefill.go_to(query.device)
            self.prefill.unseen.discard(layer)
            queries = self.parts.adapter.place_queries
            if queries is not None:
                query = queries(module, query, self.prefill.turn.base + self.prefill.now.place)
            if layer in self.parts.lenders:
                return self._borrow(module, query, key, value, layer, rule, **kwargs)
        if self.prefill is not None and not self.prefill.later:
            valid, places = self.prefill.now.valid, self.prefill.now.place
        else:
            assert self.cache is not None
            cached = self.cache.layers[self.parts.lenders.get(layer, layer) - 1]
            if isinstance(cached, StaticLayer):
                function, bias = self.attention, cached.slots.bias
                function = function or stock_attention(module, backend)
                return call_attention(function, module, query, key, value, bias, **kwargs)
            valid, places = cached.live_valid(), cached.live_places()
        if self.prefill is not None:
            scaling, softcap = kwargs["scaling"], kwargs.get("softcap")
            self.prefill.observe(layer, query, key, scaling, rule, softcap, valid, places)
        if self.session.observer is not None:
            self.session.observer(layer, query, key, kwargs["scaling"], valid)
        if not query.dtype == key.dtype == value.dtype and not torch.is_autocast_enabled(
            query.device.type
        ):  # a prefill under autocast, and a step without
            key, value = key.to(query.dtype), value.to(query.dtype)
        if rule is None or rule.plain:
            kwargs["is_causal"] = True  # some modules say otherwise, and rely on their mask
            # Positions with gaps look like packed sequences to FlashAttention's wrapper.
            kwargs["position_ids"] = None
            if backend.startswith("flash") and valid is not None:
                packed = self._pack(layer, valid, query.shape[2])
                function, named = stock_attention(module, backend), stand_in(module, backend)
                return packed.attend(function, named, query, key, value, **kwargs)
            mask = attention_mask(valid, query, key, backend)
        else:
            if backend.startswith("flash"):  # which knows no such masks
                backend = "sdpa"
            assert places is not None
            mask = self._mask(rule, layer, valid, places, query, backend)
        return self._call(backend, module, query, key, value, mask, **kwargs)

    def _call(
        self, backend: str, module: Any, query: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        function = stock_attention(module, backend)
        if backend.startswith("flash"):
            return function(stand_in(module, backend), query, *args, **kwargs)
        return call_attention(function, module, query, *args, **kwargs)

    def _pack(self, layer: int, valid: torch.Tensor, queries: int) -> Packed:
        """How FlashAttention gets rows of different lengths, found once for a group's layers."""
        key = self.record.run(layer)[0], valid.device
        if key not in self._lines:
            self._lines = {key: Packed.of(valid, queries)}
        return self._lines[key]

    def _mask(
        self,
        rule: MaskRule,
        layer: int,
        valid: torch.Tensor | None,
        places: torch.Tensor,
        query: torch.Tensor,
        backend: str,
    ) -> torch.Tensor:
        """The mask of a rule, made once for the layers of a group."""
        first, _ = self.record.run(layer)
        key = id(rule), first, query.device
        known = self._masks.get(key)
        if known is None:
            known = rule_mask(rule, valid, places, query, backend)
            self._masks = {other: mask for other, mask in self._masks.items() if other[1] == first}
            self._masks[key] = known
        return known

    def _borrow(
        self, module: Any, query: Any, key: Any, value: Any, layer: int, rule: Any, **kwargs: Any
    ) -> Any:
        """A layer at prefill that sees the keys of another, which may keep more tokens than it."""
        assert self.prefill is not None
        backend = "sdpa" if self.backend.startswith("flash") else self.backend
        queries = self.prefill.now.place[:, -query.shape[2] :]
        keys = self.prefill.lent[self.parts.lenders[layer]].to(query.device)
        rule = rule or CAUSAL
        allowed = rule.allowed(queries, keys)
        if self.record.padding is not None:
            allowed = allowed & self.record.padding.to(keys.device).gather(1, keys)[:, None, None]
            allowed = allowed | (queries[:, None, :, None] == keys[:, None, None, :])
        mask = in_form(allowed, query.dtype, backend)
        return self._call(backend, module, query, key, value, mask, **kwargs)
