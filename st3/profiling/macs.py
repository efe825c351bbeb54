"""Multiply-accumulates, counted by fvcore over transformers' own modules on the meta device.

fvcore counts one multiply-accumulate as one flop; here it is called a MAC, and a FLOP is half of
one. Matrix products, convolutions and attention count; norms, rotary embeddings, activations and
softmax do not, as in every paper of the field. Attention counts the whole n x n square, causal or
not, as the papers do.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn
from transformers import DynamicCache

from st3.families.parts import find_parts
from st3.methods.schedule import Schedule
from st3.profiling.shape import Workload


class MacCounter:
    """MACs of a model's decoder, for one prompt; a batch costs so many times more.

    Args:
        model: from `st3.families.meta.meta_model`.
    """

    def __init__(self, model: Any) -> None:
        parts = find_parts(model)
        self._model = model
        self._decoder: Any = parts.decoder
        self._hidden: int = model.config.get_text_config().hidden_size
        self.prefill_layer = cache(self._prefill_layer)
        self.decode_layer = cache(self._decode_layer)

    def _prefill_layer(self, tokens: int) -> int:
        """One decoder layer over `tokens` tokens."""
        return self._layer(tokens, past=0)

    def _decode_layer(self, keys: int) -> int:
        """One decoder layer for one new token that attends to `keys` keys, itself among them."""
        return self._layer(1, past=keys - 1)

    def _layer(self, tokens: int, past: int) -> int:
        hidden = self._states(tokens)
        # The rotary embedding is not counted: some versions of transformers make it by a matrix
        # product, and some kinds of it cannot be made on the meta device.
        turn = hidden.new_empty(1, tokens, self._decoder.layers[0].self_attn.head_dim)
        return _count(_Layer(self._decoder, past), hidden, turn, turn)

    def head(self) -> int:
        """The LM head, for one token."""
        return _count(self._model.lm_head, self._states(1))

    def prefill(self, schedule: Schedule, work: Workload) -> int:
        """The decoder layers over one prompt, each at the tokens that it has."""
        return sum(self.prefill_layer(n) for n in tokens_alive(schedule, work, 0))

    def decode(self, schedule: Schedule, work: Workload) -> int:
        """The decoder layers over all decode steps of one answer."""
        steps = [n for t in range(1, work.new) for n in tokens_alive(schedule, work, t)]
        return sum(self.decode_layers(steps))

    def decode_layers(self, keys: Sequence[int]) -> list[int]:
        """`decode_layer` at each of these lengths, most of them read off a line.

        A step's cost is affine in its keys: two counts make the line, a third one tests it, and
        were it ever to bend, every length would be counted.
        """
        low, high = min(keys, default=1), max(keys, default=1)
        middle = (low + high) // 2
        at_low, at_high = self.decode_layer(low), self.decode_layer(high)
        slope = (at_high - at_low) // max(high - low, 1)
        if self.decode_layer(middle) != at_low + slope * (middle - low):
            return [self.decode_layer(n) for n in keys]
        return [at_low + slope * (n - low) for n in keys]

    def _states(self, tokens: int) -> torch.Tensor:
        return torch.empty(1, tokens, self._hidden, device="meta", dtype=torch.bfloat16)


def tokens_alive(schedule: Schedule, work: Workload, generated: int) -> list[int]:
    """Tokens in each layer while the token after `generated` ones is computed, for one prompt."""
    return [
        schedule.count(layer, work.visual, generated) + work.text + generated
        for layer in range(1, schedule.layers + 1)
    ]


class _Layer(nn.Module):
    """The first decoder layer as a function of tensors alone, behind `past` cached tokens."""

    def __init__(self, decoder: Any, past: int) -> None:
        super().__init__()
        self.decoder = decoder
        self.past = past

    def forward(self, hidden: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> Any:
        turns = (cosines, sines)
        past = None
        if self.past:
            attention = self.decoder.layers[0].self_attn
            heads = attention.k_proj.out_features // attention.head_dim
            old = hidden.new_empty(1, heads, self.past, attention.head_dim)
            past = DynamicCache()
            past.update(old, old, 0)
        return self.decoder.layers[0](
            hidden, attention_mask=None, position_embeddings=turns, past_key_values=past
        )


def _count(module: nn.Module, *inputs: torch.Tensor) -> int:
    analysis = FlopCountAnalysis(module, inputs)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.tracer_warnings("none")
    # fvcore knows no fused attention, and would count norms, which nobody else does.
    analysis.set_op_handle("aten::scaled_dot_product_attention", _attention)
    analysis.set_op_handle("aten::layer_norm", lambda inputs, outputs: 0)
    return int(analysis.total())


def _attention(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    batch, heads, queries, size = inputs[0].type().sizes()
    keys, width = inputs[1].type().sizes()[2], inputs[2].type().sizes()[3]
    return int(batch * heads * queries * keys * (size + width))
