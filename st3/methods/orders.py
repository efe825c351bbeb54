"""Orders of tokens as tensors: by several keys, and each one's standing in one."""

from __future__ import annotations

import torch


def order_of(first: torch.Tensor, *then: torch.Tensor) -> torch.Tensor:
    """Places in a flat order by several keys of one shape, rising, the first key first.

    Returns:
        int64 [n] of keys with n elements; the earlier place of two alike first.
    """
    keys = [key.flatten() for key in (first, *then)]
    order = keys[-1].argsort(stable=True)
    for key in reversed(keys[:-1]):
        order = order[key[order].argsort(stable=True)]
    return order


def rank(score: torch.Tensor) -> torch.Tensor:
    """int64 of the shape of a score: 0 for the greatest of the last dimension, and so on.

    The earlier of two alike comes first.
    """
    best = score.argsort(dim=-1, descending=True, stable=True)
    place = torch.arange(best.shape[-1], device=best.device).expand_as(best)
    return torch.empty_like(best).scatter_(-1, best, place)
