"""Masks for the tokens alive, in the form that each attention backend reads."""

from __future__ import annotations

import torch


def attention_mask(
    valid: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor, backend: str
) -> torch.Tensor | None:
    """The mask that `backend` needs, or None where causality alone will do.

    The last query stands at the last key. A token always sees itself, so that no softmax is empty;
    what padding sees reaches nobody.

    Args:
        valid: bool [B, keys] or None.
        query, key: [B, heads, queries or keys, head size].
        backend: the attention implementation.
    """
    queries, keys = query.shape[2], key.shape[2]
    if backend.startswith("flash"):
        return valid
    if valid is None and (queries == 1 or (queries == keys and backend == "sdpa")):
        return None
    place = torch.arange(keys, device=key.device)
    own = place[keys - queries :, None]
    allowed = (place <= own)[None]
    if valid is not None:
        allowed = allowed & (valid[:, None] | (place == own))
    allowed = allowed[:, None]  # [B or 1, 1, queries, keys]
    if backend == "sdpa":
        return allowed
    bias = torch.zeros(allowed.shape, dtype=query.dtype, device=key.device)
    return bias.masked_fill(~allowed, torch.finfo(query.dtype).min)
