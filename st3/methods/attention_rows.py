"""A few rows of attention, computed again: O(n) memory, whatever kernel made the rest."""

from __future__ import annotations

import torch


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
