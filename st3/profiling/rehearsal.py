"""A prefill and a step of a decoder on the meta device, and what was seen of them.

Tensors have shapes and no numbers there, so it costs next to nothing at any size. What needs
numbers is left out: experts hand their input on, and rotary frequencies do not adapt.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, DynamicCache
from transformers.masking_utils import AttentionMaskInterface

from st3.families.meta import FAILURES
from st3.families.parts import Parts, argument_names

_NAME = "st3-rehearsal"
_PROMPT = 7  # tokens; any number that is no multiple of how often something is used
_CONVOLUTION = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Use:
    """How often the matrices of a module are used: for each token, and for each key at hand."""

    a_token: int
    a_key: int


@dataclass(frozen=True)
class Held:
    """What the cache keeps for a layer.

    Attributes:
        a_token: heads and numbers of each, of what is kept for every token: of keys, of values.
        state: numbers in the model's dtype, whatever the length; and bytes of what is always in
            another, `fixed`.
        recurrent: how many of these numbers every token changes by arithmetic.
    """

    a_token: tuple[tuple[int, int], ...] = ()
    state: int = 0
    fixed: int = 0
    recurrent: int = 0


@dataclass
class Rehearsal:
    """What was seen.

    Attributes:
        uses: module with matrices of its own -> how often they are used.
        stacks: modules that hold the matrices of experts, one upon the other.
        pairs: layer, from 1 -> MACs of a query with a key and its value.
        hurried: layers that only the last token of a prompt enters: no later layer wants keys.
        caches: of each layer.
    """

    uses: dict[nn.Module, Use] = field(default_factory=dict)
    stacks: set[nn.Module] = field(default_factory=set)
    pairs: dict[int, int] = field(default_factory=dict)
    hurried: set[int] = field(default_factory=set)
    caches: list[Held] = field(default_factory=list)


_NOW: list[Rehearsal] = []


def rehearse(parts: Parts) -> Rehearsal:
    """Run them.

    Args:
        parts: of a model on the meta device.

    Raises:
        ValueError: it does not run there.
    """
    seen, decoder = Rehearsal(), parts.decoder
    rows: dict[nn.Module, int] = {}
    held = DynamicCache(config=decoder.config)
    try:
        with torch.no_grad(), ExitStack() as stack:
            stack.enter_context(_in_our_way(decoder, seen))
            _feed(decoder, held, _PROMPT)
            for module in decoder.layers.modules():
                if _has_matrices(module):
                    hook = module.register_forward_pre_hook(partial(_note, rows), with_kwargs=True)
                    stack.callback(hook.remove)
            _feed(decoder, held, 1)
    except FAILURES as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"st3 cannot count this decoder, which does not run without numbers: {reason}"
        ) from error
    keys = _PROMPT + 1
    for module, count in rows.items():
        seen.uses[module] = Use(count % keys, count // keys)
    for module in decoder.layers.modules():  # kernels take their weights past the module
        if isinstance(module, _CONVOLUTION):
            seen.uses[module] = Use(1, 0)
    seen.caches = [_held(layer, decoder.dtype) for layer in held.layers]
    seen.caches += [Held()] * (len(parts.layers) - len(seen.caches))
    return seen


def _feed(decoder: Any, held: Any, tokens: int) -> None:
    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    more = (
        {"logits_to_keep": 1} if "logits_to_keep" in argument_names(type(decoder).forward) else {}
    )
    decoder(input_ids=ids, past_key_values=held, use_cache=True, **more)


@contextmanager
def _in_our_way(decoder: Any, seen: Rehearsal) -> Iterator[None]:
    """Attention is ours, experts do nothing, and rotary frequencies are plain ones."""
    config, before = decoder.config, decoder.config._attn_implementation
    turning = [(x, x.rope_type) for x in decoder.modules() if hasattr(x, "rope_type")]
    seen.stacks = _stacks(decoder.layers)
    try:
        _NOW.append(seen)
        config._attn_implementation = _NAME
        for module, kind in turning:  # of the same shape, and dynamic ones ask for numbers
            module.rope_type = dict.fromkeys(kind, "") if isinstance(kind, dict) else ""
        for module in seen.stacks:
            module.forward = _hand_on
        yield
    finally:
        _NOW.pop()
        config._attn_implementation = before
        for module, kind in turning:
            module.rope_type = kind
        for module in seen.stacks:
            module.__dict__.pop("forward", None)


def _stacks(layers: nn.Module) -> set[nn.Module]:
    """Modules that hold matrices of experts; or what holds several such, one for each matrix."""
    found = {
        module
        for module in layers.modules()
        if not isinstance(module, _CONVOLUTION)
        and any(x.dim() == 3 for x in module.parameters(recurse=False))
    }
    for module in layers.modules():
        inside = found & {*module.children()}
        if len(inside) > 1:
            found = (found - inside) | {module}
    return found


def _hand_on(hidden_states: Any, *_: Any, **more: Any) -> Any:
    return hidden_states


def _has_matrices(module: nn.Module) -> bool:
    own = [x for name, x in module.named_parameters(recurse=False) if not name.endswith("bias")]
    plain = not isinstance(module, (*_CONVOLUTION, nn.Embedding))
    return plain and any(x.dim() == 2 for x in own) and all(x.dim() < 3 for x in own)


def _note(rows: dict[nn.Module, int], module: nn.Module, args: Any, kwargs: Any) -> None:
    """For how many tokens a module is used: it gets [..., width]."""
    first = next(x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor))
    rows[module] = rows.get(module, 0) + first.numel() // first.shape[-1]


def _attend(module: Any, query: Any, key: Any, value: Any, mask: Any, **more: Any) -> Any:
    batch, heads, tokens, size = query.shape
    seen, number = _NOW[-1], module.layer_idx + 1
    if number not in seen.pairs and tokens < _PROMPT:  # the prefill comes first
        seen.hurried.add(number)
    seen.pairs[number] = heads * (size + value.shape[3])
    return query.new_empty(batch, tokens, heads, value.shape[3]), None


def _held(layer: Any, dtype: torch.dtype) -> Held:
    both = [getattr(layer, name, None) for name in ("keys", "values")]
    kept = [x for x in both if isinstance(x, torch.Tensor) and x.dim()]
    convolved, recurrent = (
        [x for x in (getattr(layer, name, None) or {}).values() if x is not None]
        for name in ("conv_states", "recurrent_states")
    )
    return Held(
        a_token=tuple((x.shape[1], x.shape[3]) for x in kept),
        state=sum(x.numel() for x in (*convolved, *recurrent) if x.dtype == dtype),
        fixed=sum(x.nbytes for x in (*convolved, *recurrent) if x.dtype != dtype),
        recurrent=sum(x.numel() for x in recurrent),
    )


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, lambda *args, **kwargs: None)
