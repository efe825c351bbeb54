"""Clusters of tokens: peaks of density, and seats in proportion to sizes.

All on the device, batched over groups, in float32; no number goes back to the host.
"""

from __future__ import annotations

import torch

_FAR = float("inf")


def distances(features: torch.Tensor) -> torch.Tensor:
    """Euclidean, over the root of the width, of all pairs: float [G, n, n] of float [G, n, d]."""
    with torch.autocast(features.device.type, enabled=False):
        products = features @ features.transpose(1, 2)
    square = products.diagonal(dim1=1, dim2=2)
    found = square[:, :, None] + square[:, None] - 2 * products
    found.diagonal(dim1=1, dim2=2).zero_()
    return (found.clamp_min(0) / features.shape[2]).sqrt()


def density_peaks(far: torch.Tensor, valid: torch.Tensor, nearest: int) -> torch.Tensor:
    """How much each is the centre of a cluster: its density times how far a denser one is.

    Density peaks (Rodriguez and Laio, Science 2014) as DPC-kNN (Du et al., 2016) has them: a
    density is exp(-mean squared distance) to the `nearest` ones, itself among them as in the code
    of those who use it. Of two that are equally dense the earlier one counts as denser (ours: that
    code adds noise). The densest of all is as far as the farthest.

    Args:
        far: float32 [G, n, n]. `valid`: bool [G, n].
        nearest: how many; all, where there are fewer.

    Returns:
        float32 [G, n], -1 where not valid.
    """
    pair = valid[:, None] & valid[:, :, None]
    size = far.shape[1]
    near = far.masked_fill(~pair, _FAR).topk(min(nearest, size), dim=2, largest=False).values
    there = near.isfinite()
    total = near.masked_fill(~there, 0).square().sum(2)
    density = (-total / there.sum(2).clamp_min(1)).exp()
    place = torch.arange(size, device=far.device)
    tied = (density[:, None] == density[:, :, None]) & (place < place[:, None])
    denser = ((density[:, None] > density[:, :, None]) | tied) & pair
    farthest = far.masked_fill(~pair, 0).amax((1, 2))[:, None]
    parent = far.masked_fill(~denser, _FAR).amin(2)
    parent = torch.where(parent.isfinite(), parent, farthest)
    return (density * parent).masked_fill(~valid, -1)


def apportioned(sizes: torch.Tensor, widest: int, total: int) -> torch.Tensor:
    """Seats in proportion to sizes, `total` of them, by Webster's rule; no more than a size.

    Args:
        sizes: int64 [g], `widest` at most.

    Returns:
        int64 [g], which add up to `total`, or to all sizes if these are less.
    """
    number = torch.arange(widest, device=sizes.device)
    key = (number + 0.5) / sizes[:, None].clamp_min(1).double()
    key = key.masked_fill(number >= sizes[:, None], _FAR).flatten()
    best = key.argsort(stable=True)[:total]
    seats = torch.zeros_like(sizes)
    return seats.scatter_add_(0, best // widest, key[best].isfinite().long())


def segments(frames: torch.Tensor, least: int, same: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A video cut where neighbouring frames are least alike, and wherever they are not alike.

    Args:
        frames: float [F, d], what a frame is compared by, by cosine.
        least: segments at least, if there are as many frames.
        same: a cosine; below it a segment ends.

    Returns:
        int64 [F] each: numbers of the first and the last frame of a frame's segment.
    """
    units = torch.nn.functional.normalize(frames.float(), dim=-1)
    alike = (units[1:] * units[:-1]).sum(-1)
    lowest = alike.argsort(stable=True).argsort() < least - 1
    begins = torch.ones(len(units), dtype=torch.bool, device=units.device)
    begins[1:] = lowest | (alike < same)
    return bounds(begins)


def bounds(begins: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int64 [F] each: the first and the last of each one's run, of bool [F], where runs begin."""
    place = torch.arange(len(begins), device=begins.device)
    first = torch.where(begins, place, 0).cummax(0).values
    ends = torch.ones_like(begins)
    ends[:-1] = begins[1:]
    last = torch.where(ends, place, len(begins)).flip(0).cummin(0).values.flip(0)
    return first, last


def still_windows(alike: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A video divided so that as many tokens as can be stand still and are seen once.

    Of a window of w frames those cells that are alike in every step are worth w - 1 tokens each;
    dynamic programming finds the windows worth most. Of equal ones the last window is the shorter.

    Args:
        alike: bool [F - 1, n], whether a cell is alike from frame to frame.

    Returns:
        int64 [F], int64 [F] and bool [F, n]: the first and the last frame of a frame's window, and
        which cells stand still in all of it; none in a window of one frame.
    """
    steps, size = alike.shape
    frames, device = steps + 1, alike.device
    place = torch.arange(frames, device=device)[:, None]
    moved = torch.ones(frames, size, dtype=torch.bool, device=device)
    moved[1:] = ~alike
    still = place - torch.where(moved, place, 0).cummax(0).values  # steps since it moved
    # [last frame, steps]: cells that have stood still for so many, and what they are worth.
    many = torch.zeros(frames, frames, dtype=torch.long, device=device)
    many.scatter_add_(1, still, torch.ones_like(still))
    worth = many.flip(1).cumsum(1).flip(1) * place.T
    best = torch.zeros(frames + 1, dtype=torch.long, device=device)
    length = torch.zeros(frames, dtype=torch.long, device=device)
    for end in range(frames):
        found = (worth[end, : end + 1] + best[: end + 1].flip(0)).max(0)
        best[end + 1], length[end] = found
    begins = torch.zeros(frames + 1, dtype=torch.long, device=device)
    begins[frames] = 1
    for end in reversed(range(frames)):
        begin = end - length[end : end + 1]
        begins.scatter_reduce_(0, begin, begins[end + 1 : end + 2].clone(), "amax")
    first, last = bounds(begins[:frames].bool())
    rests = (still[last] >= (last - first)[:, None]) & (last > first)[:, None]
    return first, last, rests
