"""Which of torch's attention kernels trimming calls: those that need no plan for each new shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

LONG = 8192
"""Queries from which on cuDNN's faster attention is worth the plan that it builds first."""


def call_attention(
    attention: Callable[..., Any], module: Any, query: torch.Tensor, *states: Any, **kwargs: Any
) -> Any:
    """Call an attention function of transformers, with cuDNN out of SDPA's choice where it is slow.

    On Hopper and later torch prefers cuDNN, which builds an execution plan, tens of milliseconds,
    for every shape that the process has not seen. Trimming has a new shape in every group, and
    annealing in every step; FlashAttention and memory-efficient attention, torch's next choices,
    need no plan.

    Args:
        attention: of transformers' `AttentionInterface`.
        module: the attention module.
        query: [B, heads, queries, head size].
        states: keys, values, mask.
    """
    cudnn = query.is_cuda and query.shape[2] < LONG and torch.backends.cuda.cudnn_sdp_enabled()
    if not cudnn:
        return attention(module, query, *states, **kwargs)
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        return attention(module, query, *states, **kwargs)
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)
