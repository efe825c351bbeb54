"""Which kernels attend: of torch's those that need no plan for each new shape, or a compiler's."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

LONG = 8192
"""Queries from which on cuDNN's faster attention is worth the plan that it builds first."""


_LOCK = threading.Lock()
_inside = 0
_before = True


@contextmanager
def without_plans() -> Iterator[None]:
    """Keep cuDNN out of SDPA's choice, which is the process's: threads count themselves in.

    On Hopper and later torch prefers cuDNN's attention, which builds an execution plan, tens of
    milliseconds, for every shape that the process has not seen. Trimming has a new shape in every
    group, and annealing in every step; FlashAttention and memory-efficient attention, torch's next
    choices, need no plan.
    """
    global _inside, _before
    with _LOCK:
        if not _inside:
            _before = torch.backends.cuda.cudnn_sdp_enabled()
            torch.backends.cuda.enable_cudnn_sdp(False)
        _inside += 1
    try:
        yield
    finally:
        with _LOCK:
            _inside -= 1
            if not _inside:
                torch.backends.cuda.enable_cudnn_sdp(_before)


def call_attention(
    attention: Callable[..., Any], module: Any, query: torch.Tensor, *states: Any, **kwargs: Any
) -> Any:
    """Call an attention function of transformers, `without_plans` unless the prompt is long.

    Args:
        attention: of transformers' `AttentionInterface`.
        module: the attention module.
        query: [B, heads, queries, head size].
        states: keys, values, mask.
    """
    # Whoever compiles a step sees to it around the whole step.
    if torch.compiler.is_compiling() or not query.is_cuda or query.shape[2] >= LONG:
        return attention(module, query, *states, **kwargs)
    with without_plans():
        return attention(module, query, *states, **kwargs)


def attend_by_sums(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """What SDPA gives for one query, as sums, which a compiler puts into one loop with the rest.

    Args:
        module: the attention module.
        query: [B, heads, 1, head size]. `key`, `value`: [B, key heads, slots, head size].
        bias: [B, 1, 1, slots], added to the logits.
        scaling: of the logits; the inverse root of the head size unless given.

    Returns:
        [B, 1, heads, head size], and None.

    Raises:
        NotImplementedError: for what SDPA takes and this does not.
    """
    if kwargs.get("position_bias") is not None or kwargs.get("softcap") is not None:
        raise NotImplementedError("attention with a bias or a cap of its own")
    if kwargs.get("dropout"):
        raise NotImplementedError("attention that drops weights by chance")
    batch, heads, _, size = query.shape
    shared = key.shape[1]
    factor = size**-0.5 if scaling is None else scaling
    wide = torch.promote_types(query.dtype, torch.float32)
    grouped = query.view(batch, shared, heads // shared, 1, size).to(wide)
    logits = (grouped * key[:, :, None].to(wide)).sum(-1) * factor + bias[:, :, 0, None].to(wide)
    weights = logits.softmax(-1)[..., None]
    mixed = (weights * value[:, :, None].to(wide)).sum(-2)
    return mixed.view(batch, 1, heads, value.shape[-1]).to(query.dtype), None
