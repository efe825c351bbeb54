"""What each decoder layer computes and keeps, read off two small forwards on the meta device.

A layer is asked, not its configuration: hooks count for how many tokens each matrix of weights is
used, an attention function of ours sees the heads that a layer hands to attention, and the cache
of transformers' own says what is kept. So experts, latent attention, borrowed keys and recurrent
states need no names of families, and a new family touches nothing here.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

from st3.engine.codes import slot_bytes
from st3.families.parts import Parts, find_parts
from st3.profiling.rehearsal import Rehearsal, rehearse

_FOUND: weakref.WeakKeyDictionary[Any, tuple[Layer, ...]] = weakref.WeakKeyDictionary()
_ACTIVE = ("num_experts_per_tok", "moe_topk")
_DELTA_RULE = 3  # a state is read by the key, written by an outer product, read by the query


@dataclass(frozen=True)
class Layer:
    """Sizes of one decoder layer, for one prompt.

    Attributes:
        per_token: MACs of one token with weights: all matrices that it meets, of the experts those
            that the router picks, the kernel of a convolution; and three for each number of a
            recurrent state, see `_DELTA_RULE`.
        per_key: MACs with weights for every key at hand, new or cached: where the cache holds
            latents, keys and values are made of them again in every forward. 0 elsewhere.
        per_pair: MACs of a query with a key and its value: heads x (key size + value size).
        rows: what the cache holds for a token, of keys and of values: heads, and numbers of each;
            nothing of layers without keys of their own.
        state: numbers that a recurrent layer keeps instead, whatever the length, and `fixed`, bytes
            of those that are kept in another dtype than the model's.
        shared: parameters that every token meets; `expert` those of one expert, of which there are
            `experts` and a token meets `active`. 0 where there are none.
        window: keys that a token sees at most, None where that is not limited.
        hurried: whether `generate` sends only the last token of a prompt through it, as some models
            do with their last layers where these borrow their keys.
        lender: the layer, from 1, whose keys it uses; None where it has its own.
    """

    per_token: int
    per_key: int
    per_pair: int
    rows: tuple[tuple[int, int], ...]
    state: int
    fixed: int
    shared: int
    expert: int
    experts: int
    active: int
    window: int | None
    hurried: bool
    lender: int | None

    def prefill_macs(self, tokens: int, keys: int | None = None) -> int:
        """Of so many tokens that look at so many keys, by default their own.

        No token looks at more keys than a window has; before and behind it alike, as in a square.
        """
        keys = tokens if keys is None else keys
        seen = self._seen(keys)
        return tokens * (self.per_token + seen * self.per_pair) + keys * self.per_key

    def step_macs(self, keys: int) -> int:
        """Of one token that looks at all of so many keys, itself among them."""
        return self.per_token + keys * (self.per_pair + self.per_key)

    def future_macs(self, keys: int) -> int:
        """Of `prefill_macs`, attention to what comes later or left the window: kernels skip it."""
        return 0 if self.hurried else self.per_pair * self._seen(keys) ** 2 // 2

    def _seen(self, keys: int) -> int:
        return keys if self.window is None else min(keys, self.window)

    @property
    def cached(self) -> int:
        """Numbers that the cache holds for a token."""
        return sum(heads * numbers for heads, numbers in self.rows)

    def cached_bytes(self, element: int, kind: str = "auto") -> int:
        """Bytes that it takes for them, `kind` being one of `KV_CACHE_DTYPES`."""
        return sum(heads * slot_bytes(kind, numbers, element) for heads, numbers in self.rows)

    def state_bytes(self, element: int) -> int:
        """Of its state, in a model whose numbers take so many bytes."""
        return element * self.state + self.fixed

    @property
    def active_parameters(self) -> int:
        """Parameters that one token meets."""
        return self.shared + self.active * self.expert

    def parameters_read(self, tokens: int) -> float:
        """Parameters that so many tokens meet together, if the router spreads them evenly.

        Each expert is missed by a token with probability 1 - active / experts.
        """
        if not self.experts:
            return self.shared
        missed: float = (1 - self.active / self.experts) ** tokens
        return self.shared + self.experts * self.expert * (1 - missed)


def layers_of(model: Any) -> tuple[Layer, ...]:
    """The sizes of all decoder layers; found once.

    Args:
        model: from `st3.families.meta.meta_model`.

    Raises:
        ValueError: a decoder that cannot be counted; says why.
    """
    if model not in _FOUND:
        parts = find_parts(model)
        seen = rehearse(parts)
        _FOUND[model] = tuple(
            _layer(layer, number, parts, seen) for number, layer in enumerate(parts.layers, 1)
        )
    return _FOUND[model]


def _layer(layer: nn.Module, number: int, parts: Parts, seen: Rehearsal) -> Layer:
    stacks = [module for module in layer.modules() if module in seen.stacks]
    if len(stacks) > 1:
        raise ValueError(
            "st3 does not count a decoder yet that has experts of several kinds in a layer"
        )
    rows = [(_matrix_macs(module), count) for module, count in _uses(layer, seen)]
    per_token = sum(macs * count.a_token for macs, count in rows)
    total = sum(parameter.numel() for parameter in layer.parameters())
    experts = active = expert = 0
    if stacks:
        matrices = [x for x in stacks[0].parameters() if x.dim() == 3]
        experts, active = matrices[0].shape[0], _active(layer, parts)
        expert = sum(x.numel() for x in stacks[0].parameters()) // experts
        per_token += active * sum(x.numel() for x in matrices) // experts
    held = seen.caches[number - 1]
    return Layer(
        per_token=per_token + _DELTA_RULE * held.recurrent,
        per_key=sum(macs * count.a_key for macs, count in rows),
        per_pair=seen.pairs.get(number, 0),
        rows=held.a_token,
        state=held.state,
        fixed=held.fixed,
        shared=total - experts * expert,
        expert=expert,
        experts=experts,
        active=active,
        window=parts.windows.get(number),
        hurried=number in seen.hurried,
        lender=parts.lenders.get(number),
    )


def _uses(layer: nn.Module, seen: Rehearsal) -> list[tuple[nn.Module, Any]]:
    return [(module, seen.uses[module]) for module in layer.modules() if module in seen.uses]


def _matrix_macs(module: nn.Module) -> int:
    """MACs of one token with the matrices of a module, by fvcore where it can trace it."""
    if type(module) is nn.Linear:
        return _linear_macs(module.in_features, module.out_features)
    return sum(x.numel() for x in module.parameters(recurse=False) if x.dim() > 1)


@cache
def _linear_macs(inputs: int, outputs: int) -> int:
    with torch.device("meta"):
        return count_macs(nn.Linear(inputs, outputs, bias=False), torch.empty(1, inputs))


def count_macs(module: nn.Module, *inputs: torch.Tensor) -> int:
    """MACs of a module by fvcore, which calls one of them a flop."""
    analysis = FlopCountAnalysis(module, inputs)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.tracer_warnings("none")
    return int(analysis.total())


def _active(layer: nn.Module, parts: Parts) -> int:
    """How many experts a token meets: what the router says, or else the configuration."""
    found = {getattr(module, "top_k", None) for module in layer.modules()} - {None}
    found = found or {getattr(parts.decoder.config, name, None) for name in _ACTIVE} - {None}
    if len(found) == 1:
        (count,) = found
        if isinstance(count, int):
            return count
    raise ValueError("st3 cannot tell how many experts a token of this decoder meets")
