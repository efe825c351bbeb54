"""A few rows of attention, computed again: O(n) memory, whatever kernel made the rest."""

from __future__ import annotations

import torch

ROWS = 1 << 24
"""Numbers of attention that are computed at a time."""


def attention_rows(
    query: torch.Tensor,
    key: torch.Tensor,
    scaling: float,
    valid: torch.Tensor | None,
    rows: int = 1,
    allowed: torch.Tensor | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Attention probabilities of the last `rows` tokens, float32 [B, query heads, rows, n].

    Args are those of `st3.methods.scorers.LayerView`, `allowed` for these rows: bool
    [B, 1, rows, n], None for causality. There may be fewer queries than keys.
    """
    batch, heads, _, size = query.shape
    groups, tokens = key.shape[1], key.shape[2]
    query = query[:, :, -rows:].reshape(batch, groups, heads // groups * rows, size)
    with torch.autocast(query.device.type, enabled=False):  # scores are fp32 whatever the model is
        logits = query.float() @ key.float().transpose(2, 3) * scaling
    logits = logits.view(batch, heads, rows, tokens)
    if softcap is not None:
        logits = (logits / softcap).tanh() * softcap
    if allowed is not None:
        logits = logits.masked_fill(~allowed, torch.finfo(torch.float32).min)
    elif rows > 1:
        place = torch.arange(tokens, device=logits.device)
        logits = logits.masked_fill(place > place[-rows:, None], float("-inf"))
    if valid is not None:
        logits = logits.masked_fill(~valid[:, None, None], torch.finfo(torch.float32).min)
    return logits.softmax(-1)


def as_one_head(states: torch.Tensor, heads: int) -> torch.Tensor:
    """Queries or keys [B, key heads, n, size] of `heads` query heads, side by side in one.

    Returns:
        [B, 1, n, heads x size].
    """
    states = states.repeat_interleave(heads // states.shape[1], 1)
    return states.transpose(1, 2).flatten(2)[:, None]


def received(
    query: torch.Tensor,
    key: torch.Tensor,
    scaling: float,
    mask: torch.Tensor | None,
    *,
    first_only: bool,
) -> torch.Tensor:
    """Attention that each patch gets, mean over heads, float32 [B, n].

    Args:
        query, key: [B, heads, n, head size]. `scaling`: of their products.
        mask: bool [B or 1, 1, n, n] or what is added to logits; or [B, n], which patches are there,
            as FlashAttention gets it; None for none.
        first_only: from the first patch, a class token; else from all that see it, on average.
    """
    batch, heads, count, _ = query.shape
    key = key.float().repeat_interleave(heads // key.shape[1], 1)
    step = 1 if first_only else max(1, ROWS // (batch * heads * key.shape[2]))
    total = query.new_zeros(batch, key.shape[2], dtype=torch.float32)
    asked = torch.zeros_like(total)
    if mask is not None and mask.dim() == 2:
        mask = mask.bool()[:, None, None].expand(-1, 1, count, -1)
    with torch.autocast(query.device.type, enabled=False):
        for begin in range(0, 1 if first_only else count, step):
            logits = query[:, :, begin : begin + step].float() @ key.transpose(2, 3) * scaling
            seen = torch.ones_like(logits[:, 0], dtype=torch.bool)
            if mask is not None:
                part = mask[..., begin : begin + step, : key.shape[2]]
                seen = part[:, 0] if part.dtype == torch.bool else part[:, 0] > -1e4
                seen = seen.expand(logits[:, 0].shape)
                logits = logits.masked_fill(~seen[:, None], torch.finfo(torch.float32).min)
            weights = logits.softmax(-1).mean(1).masked_fill(~seen, 0)
            total += weights.sum(1)
            asked += seen.sum(1)
    return total / asked.clamp_min(1)
