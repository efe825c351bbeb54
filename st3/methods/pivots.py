"""Tokens unlike some pivots, each pivot taking its part in turn: what DART computes with."""

from __future__ import annotations

import torch

from st3.methods.orders import rank


def unlike(
    units: torch.Tensor,
    free: torch.Tensor,
    pivots: torch.Tensor,
    real: torch.Tensor,
    wanted: torch.Tensor,
) -> torch.Tensor:
    """In which order tokens are taken, int64 [G, n]: from 0, and `n` for those that are not.

    Pivots share what is wanted evenly, the first ones taking one more; each takes, of what is left,
    the tokens of the lowest cosine to it, the first of equals.

    Args:
        units: float32 [G, n, d], of length 1. `free`: bool [G, n], what may be taken.
        pivots: float32 [G, p, d], of length 1. `real`: bool [G, p], which there are, those first.
        wanted: int64 [G], how many are to be taken.
    """
    many = real.sum(1).clamp_min(1)
    share, rest = wanted // many, wanted % many
    order = torch.full_like(free, units.shape[1], dtype=torch.long)
    taken = torch.zeros_like(wanted)
    for number in range(pivots.shape[1]):
        cosine = (units @ pivots[:, number, :, None])[..., 0].masked_fill(~free, float("inf"))
        standing = rank(-cosine)
        quota = (share + (number < rest)) * real[:, number]
        here = free & (standing < quota[:, None])
        order = torch.where(here, taken[:, None] + standing, order)
        free, taken = free & ~here, taken + quota
    return order


def largest(size: torch.Tensor, among: torch.Tensor, count: int) -> tuple[torch.Tensor, ...]:
    """The `count` tokens of the largest size, int64 [G, c], and which there are, bool [G, c].

    Args:
        size: float [G, n]. `among`: bool [G, n], where there are any.
        count: how many at most, c in a shorter row.
    """
    size = size.float().masked_fill(~among, float("-inf"))
    found = size.argsort(dim=1, descending=True, stable=True)[:, :count]
    return found, among.gather(1, found)
