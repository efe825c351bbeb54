"""The attention functions that a trimmed model calls, one for each that it may have had before.

They are registered with transformers under names of their own. A layer of a trimmed forward gets a
`Forward` along with its arguments and is answered by that; any other call (another thread's, which
is not trimmed, or that of a copy made meanwhile) gets the attention and the masks that the model
had before.
"""

from __future__ import annotations

import copy
import sys
import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from st3.engine.masks import MaskRule, make_rule

BACKENDS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3")
"""Attention implementations under which a model can be trimmed."""
FORWARD = "st3_forward"
"""The argument that carries a `Forward` from the decoder to its layers and their attention."""
NO_MASK = torch.empty(1, 1, 1, 1)
"""In the place of a recorded step's mask: being 4-D it keeps transformers from making one."""
_PREFIX = "st3_"
_HERE = threading.local()
_STAND_INS: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()


def own_name(backend: str) -> str:
    """The name under which our function for this attention implementation is registered."""
    return _PREFIX + backend


def backend_of(config: Any) -> str:
    """The attention implementation of a configuration; ours stand for what they replaced."""
    return str(config._attn_implementation).removeprefix(_PREFIX)


def trimmed_configs(merger: nn.Module, decoder: Any, backend: str) -> list[tuple[nn.Module, Any]]:
    """Modules, and copies of their configurations that ask for our function and our masks.

    Those of the decoder, and the merger's, which may make the masks and whose configuration holds
    the decoder's.
    """
    before = decoder.config
    ours = _with_attention(before, own_name(backend))
    modules = [x for x in merger.modules() if getattr(x, "config", None) is before]
    found = [(module, ours) for module in modules]
    names = [name for name, value in vars(merger.config).items() if value is before]
    if names:
        whole = copy.copy(merger.config)
        for name in names:
            setattr(whole, name, ours)
        found.append((merger, whole))
    return found


def stock_attention(module: Any, backend: str) -> Callable[..., Any]:
    """What transformers would call for an attention module under this implementation."""
    if backend == "eager":  # not registered: every modelling file has its own
        eager: Callable[..., Any] = sys.modules[type(module).__module__].eager_attention_forward
        return eager
    function: Callable[..., Any] = AttentionInterface()[backend]
    return function


def stand_in(module: nn.Module, backend: str) -> Any:
    """A module whose configuration names `backend`: FlashAttention's wrapper reads the name."""
    found = _STAND_INS.get(module)
    if found is None or found.config._attn_implementation != backend:
        found = copy.copy(module)
        found.config = _with_attention(module.config, backend)
        _STAND_INS[module] = found
    return found


def ask_for_rules(wanted: bool) -> None:
    """Whether the masks that this thread asks for from now on are those of a trimmed forward."""
    _HERE.rules = wanted


def _with_attention(config: Any, name: str) -> Any:
    changed = copy.copy(config)
    changed._attn_implementation = {"": name}
    return changed


def _attend(
    backend: str, module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any
) -> Any:
    forward = kwargs.pop(FORWARD, None)
    if forward is not None:
        if isinstance(mask, torch.Tensor) and mask is not NO_MASK:
            raise RuntimeError("this model makes its attention mask where st3 does not see it")
        rule = mask if isinstance(mask, MaskRule) else None
        return forward.attend(module, query, key, value, rule, **kwargs)
    function = stock_attention(module, backend)
    if backend.startswith("flash"):
        module = stand_in(module, backend)
    return function(module, query, key, value, mask, **kwargs)


def _mask(backend: str, *args: Any, **kwargs: Any) -> Any:
    if getattr(_HERE, "rules", False):
        return make_rule(*args, **kwargs)
    return AttentionMaskInterface()[backend](*args, **kwargs)


for _backend in BACKENDS:
    AttentionInterface.register(own_name(_backend), partial(_attend, _backend))
    AttentionMaskInterface.register(own_name(_backend), partial(_mask, _backend))
