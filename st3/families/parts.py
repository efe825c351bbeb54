"""Does a model fit, and where are its parts? Found by looking at it, not by a list of names.

A model fits if its visual tokens are positions of a decoder whose layers call attention through
transformers' `AttentionInterface`, get their rotary positions as an argument, and take nothing else
that belongs to tokens and that we would not know to gather. Looking needs no weights: a model on
the meta device will do.
"""

from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from st3.families.base import Adapter, find_adapter
from st3.families.meta import meta_model
from st3.families.proven import PROVEN

_WHOLE = "full_attention"
_WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
"""Kinds of layers that see a part of the sequence, and how the configuration calls its length."""
_RECURRENT = ("linear_attention", "conv")
_KNOWN = {
    "hidden_states", "attention_mask", "position_ids", "position_embeddings",
    "past_key_values", "past_key_value", "use_cache", "cache_position", "output_attentions",
    "output_router_logits", "shared_kv_states", "kwargs",
}  # fmt: skip
"""Arguments of layers that we hand on or gather."""
_DECODERS = {
    "input_ids", "inputs_embeds", "attention_mask", "position_ids", "past_key_values",
    "use_cache", "cache_position", "output_attentions", "output_hidden_states", "return_dict",
    "logits_to_keep", "visual_pos_masks", "deepstack_visual_embeds", "vision_mask",
    "deepstack_features", "per_layer_inputs", "kwargs",
}  # fmt: skip
"""Arguments of decoders that it hands to its layers, or that we take from it."""


@dataclass(frozen=True)
class Parts:
    """The parts of a model that trimming needs; layers count from 1.

    Attributes:
        adapter: of its family.
        merger, decoder: modules; `layers` of the decoder.
        visual_ids: ids of placeholders of visual tokens.
        windows: layer -> how many tokens it sees at most, where that is limited.
        recurrent: layers that keep a state instead of tokens.
        lenders: layer that has no keys of its own -> the layer whose it uses.
    """

    adapter: Adapter
    merger: nn.Module
    decoder: Any
    layers: list[nn.Module]
    visual_ids: tuple[int, ...]
    windows: dict[int, int]
    recurrent: frozenset[int]
    lenders: dict[int, int]

    @property
    def plain(self) -> bool:
        """Whether all layers attend to everything before, with keys of their own."""
        return not (self.windows or self.recurrent or self.lenders)

    @property
    def last_norm(self) -> Any:
        """What the decoder's output goes through last, None where it has no such module."""
        names = ("norm", "final_layernorm", "embedding_norm")
        return next((x for x in (getattr(self.decoder, n, None) for n in names) if x), None)

    @property
    def keyed(self) -> list[int]:
        """Layers that have keys and values of tokens."""
        count = len(self.layers)
        return [n for n in range(1, count + 1) if n not in self.recurrent and n not in self.lenders]

    def seeing(self, tokens: int) -> tuple[int, ...]:
        """Layers whose attention sees every one of so many tokens."""
        return tuple(n for n in self.keyed if self.windows.get(n, tokens) >= tokens)

    def recurrent_layers(self) -> dict[int, Any]:
        """Fresh cache layers of transformers' own for the recurrent layers."""
        if not self.recurrent:
            return {}
        fresh = DynamicCache(config=self.decoder.config).layers
        return {n: fresh[n - 1] for n in self.recurrent}


def find_parts(model: Any) -> Parts:
    """The parts of a model.

    Raises:
        ValueError: it does not fit; says which part does not, and why.
    """
    config = model.config
    adapter = find_adapter(config)

    def refuse(why: str) -> ValueError:
        return ValueError(f"st3 cannot trim a model of the family {adapter.model_type!r}: {why}")

    if getattr(config, "is_encoder_decoder", False):
        raise refuse("it is an encoder-decoder, whose pictures are no tokens of the decoder")
    decoder: Any = adapter.decoder(model)
    if decoder is None:
        raise refuse("it has no decoder with layers")
    ids = adapter.visual_ids(config)
    if not ids:
        raise refuse("its configuration names no placeholder of visual tokens in the prompt")
    layers = list(decoder.layers)
    kinds = _kinds(decoder.config, len(layers))
    unknown = {*kinds} - {_WHOLE, *_WINDOWS, *_RECURRENT}
    if unknown:
        raise refuse(f"its decoder has layers of the kind {sorted(unknown)[0]!r}")
    recurrent = frozenset(n for n, kind in enumerate(kinds, 1) if kind in _RECURRENT)
    for number, layer in enumerate(layers, 1):
        why = _misfit(layer, decoder, adapter, number in recurrent)
        if why is not None:
            raise refuse(f"layer {number} of its decoder {why}")
    merger = adapter.merger(model)
    strange = _strange(decoder, _DECODERS, adapter)
    if strange and merger is not decoder:  # which takes pictures, too
        raise refuse(f"its decoder takes {strange[0]!r}, which may belong to tokens")
    return Parts(
        adapter=adapter,
        merger=merger,
        decoder=decoder,
        layers=layers,
        visual_ids=ids,
        windows=_windows(decoder.config, kinds),
        recurrent=recurrent,
        lenders=_lenders(decoder.config, kinds),
    )


def devices(module: nn.Module) -> set[torch.device]:
    """Where a module's weights lie; those that are offloaded lie nowhere now."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    return {tensor.device for tensor in tensors if not tensor.is_meta}


def layer_names(model: Any) -> list[str]:
    """What the decoder's layers are called in a model that fits."""
    names = {id(module): name for name, module in model.named_modules()}
    return [names[id(layer)] for layer in find_parts(model).layers]


def judge(config: Any) -> None:
    """Whether a model of this configuration fits, found without any weights.

    Raises:
        ValueError: it does not; says which part, and why. Or transformers has no such model.
    """
    find_parts(meta_model(config))


def unproven(model: Any) -> str | None:
    """One line for a warning if no oracle has proven a model's family with its text model.

    Args:
        model: one that fits, or its configuration.
    """
    config = getattr(model, "config", model)
    family, text = config.model_type, config.get_text_config().model_type
    if text in PROVEN.get(family, ()):
        return None
    return (
        f"the family {family!r} with a {text!r} text model fits, but no oracle has proven it: "
        "compare `none` with stock first"
    )


def _kinds(config: Any, count: int) -> list[str]:
    """What kind each layer is of."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return list(kinds)
    sliding = getattr(config, "sliding_window", None) is not None
    return ["sliding_attention" if sliding else _WHOLE] * count


def _windows(config: Any, kinds: list[str]) -> dict[int, int]:
    lengths = {kind: getattr(config, name, None) for kind, name in _WINDOWS.items()}
    found = {number: lengths.get(kind) for number, kind in enumerate(kinds, 1)}
    return {number: length for number, length in found.items() if length is not None}


def _lenders(config: Any, kinds: list[str]) -> dict[int, int]:
    modes = getattr(config, "kv_sharing_modes", None)
    if modes is None:  # older versions give the number of the last layers that borrow
        borrow = getattr(config, "num_kv_shared_layers", None) or 0
        own = len(kinds) - borrow if borrow else 0
        modes = ["store"] * own + ["reuse"] * borrow
    each = list(enumerate(zip(modes, kinds, strict=False), 1))
    lender = {kind: number for number, (mode, kind) in each if mode == "store"}
    return {number: lender[kind] for number, (mode, kind) in each if mode == "reuse"}


@lru_cache
def argument_names(forward: Callable[..., Any]) -> tuple[str, ...]:
    """The names of the arguments of a module's forward, in order; layers share their class's."""
    return tuple(inspect.signature(forward).parameters)[1:]


def _strange(module: nn.Module, known: set[str], adapter: Adapter) -> list[str]:
    """Arguments of a module that we know nothing of."""
    ours = {name for name, _ in adapter.token_arguments}
    return sorted({*argument_names(type(module).forward)} - known - ours)


def _misfit(layer: nn.Module, decoder: Any, adapter: Adapter, recurrent: bool) -> str | None:
    """Why a layer does not fit, None if it does."""
    strange = _strange(layer, _KNOWN, adapter)
    if strange and strange[0].startswith("cross_attention"):
        return f"takes {strange[0]!r}: it looks at pictures that are no tokens of the prompt"
    if strange:
        return f"takes {strange[0]!r}, which may belong to tokens"
    if recurrent:
        return None
    attention = getattr(layer, "self_attn", None)
    if attention is None or not hasattr(attention, "layer_idx"):
        return "has no self-attention that knows its number"
    if not hasattr(sys.modules[type(attention).__module__], "ALL_ATTENTION_FUNCTIONS"):
        return "does not call attention through transformers' AttentionInterface"
    if getattr(attention, "config", None) is not decoder.config:
        return "holds a configuration of its own, as copied or quantised layers may"
    if "position_embeddings" not in argument_names(type(layer).forward):
        return "makes its positions by itself, which tokens would lose when others are dropped"
    return None
