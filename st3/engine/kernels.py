"""Which of torch's attention kernels trimming calls: those that need no plan for each new shape."""

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
