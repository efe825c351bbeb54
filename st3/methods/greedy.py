"""Greedy choices of a diverse subset, as orders: every budget is a prefix.

All work on G pools at once, in float32, and no number goes back to the host. A choice of T among n
costs a matrix of similarities and T updates of n numbers (DPP: of n x T).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import threshold

from st3.methods.scorers import golden_spread

_NOTHING = float("-inf")
_WORTHLESS = -1e30  # the logarithm of a quality of 0, kept finite: it comes after all others
_BEYOND = 4.0  # further than any two directions
_EXHAUSTED = 2e-6
"""Of a token's own similarity to itself: what a choice leaves of it below this is rounding."""
SPREAD = "behind what the determinants can tell apart, tokens spread evenly follow"
"""For the report, where `greedy_map` ran out of rank."""


def ranked(score: torch.Tensor, valid: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` best by a score [G, n], the earlier of two alike first: int64 [G, count]."""
    wide = score.double() if score.dtype == torch.float64 else score.float()
    order = wide.masked_fill(~valid, _NOTHING).argsort(dim=1, descending=True, stable=True)
    return _sound(order[:, :count], wide, valid)


def similarities(units: torch.Tensor) -> torch.Tensor:
    """Cosines of all pairs, float32 [G, n, n], of rows of length 1 [G, n, d].

    A token's with itself is 1 to the bit, so that rounding is no reason to prefer one.
    """
    with torch.autocast(units.device.type, enabled=False):
        found = units @ units.transpose(1, 2)
    own = found.diagonal(dim1=1, dim2=2)
    own.copy_(torch.where(own > 0.5, 1.0, own))
    return found


def _greedy(
    gain: torch.Tensor,
    valid: torch.Tensor,
    count: int,
    update: Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """int64 [G, count]: again and again the greatest gain [G, n], which `update` makes anew.

    `update` gets the number of the pick, which it is, int64 [G, 1], and the gains before it, and
    may change these in place; what it says of tokens that were picked does not matter. Few
    operations a pick: on a GPU launching them is what takes time.
    """
    count = min(count, valid.shape[1])
    picks = torch.empty(len(valid), count, dtype=torch.long, device=valid.device)
    first = gain
    closed = torch.zeros_like(gain).masked_fill_(~valid, _NOTHING)  # is added to gains
    for number in range(count):
        best = picks[:, number : number + 1]
        torch.argmax(gain + closed, 1, keepdim=True, out=best)
        closed.scatter_(1, best, _NOTHING)
        gain = update(number, best, gain)
    return _sound(picks, gain + first, valid)


def _sound(picks: torch.Tensor, score: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """The picks; -1 in a pool whose scores [G, n] are no numbers, which the engine refuses."""
    return picks.masked_fill((score.isnan() & valid).any(1, keepdim=True), -1)


def _row(matrix: torch.Tensor, best: torch.Tensor) -> torch.Tensor:
    """Row `best` [G, 1] of each matrix [G, n, n]: [G, n]."""
    index = best[..., None].expand(-1, 1, matrix.shape[2])
    return matrix.gather(1, index)[:, 0]


def farthest_first(similar: torch.Tensor, valid: torch.Tensor, count: int) -> torch.Tensor:
    """Max-min: each next one is the farthest from all that were chosen, by 1 - similarity.

    The first is the one whose nearest neighbour is farthest away.

    Args:
        similar: float32 [G, n, n]. `valid`: bool [G, n].
        count: how many.

    Returns:
        int64 [G, count], as chosen.
    """
    far = (1 - similar).masked_fill(~valid[:, None], _BEYOND)
    own = torch.eye(far.shape[1], dtype=torch.bool, device=far.device)
    alone = far.masked_fill(own, _BEYOND).amin(2)

    def update(number: int, best: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        row = _row(far, best)
        return row if number == 0 else torch.minimum(gain, row)

    return _greedy(alone, valid, count, update)


def greedy_map(
    similar: torch.Tensor, quality: torch.Tensor, valid: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Greedy MAP of a determinantal point process with kernel diag(q) S diag(q).

    Each next one makes the determinant of the chosen part of the kernel largest. By Chen et al.,
    *Fast Greedy MAP Inference for Determinantal Point Process*, NeurIPS 2018: a Cholesky factor
    grows by a row with each pick. It is that of S alone: quality multiplies a determinant by what
    the factor knows nothing of, so that no range of qualities costs it precision. Where the rank of
    S is used up, what is left follows spread evenly over the prompt.

    Args:
        similar: float32 [G, n, n], positive semidefinite, 1 on the diagonal, or 0 where there is
            nothing.
        quality: float32 [G, n], the logarithm of q.
        valid: bool [G, n].
        count: how many.

    Returns:
        int64 [G, count], as chosen; and int64 [G], how many of them were chosen by determinants.
    """
    count = min(count, valid.shape[1])
    best_quality = quality.masked_fill(~valid, _NOTHING).amax(1, keepdim=True)
    worth = 2 * (quality - best_quality).clamp_min(_WORTHLESS)
    left = similar.diagonal(dim1=1, dim2=2).clone()  # of each token, outside the span of the chosen
    told = left + worth
    rows = left.new_zeros(len(left), count, left.shape[1])  # of Cholesky's factor
    pivots = left.new_empty(len(left), count)

    def gains() -> torch.Tensor:
        return threshold(left, _EXHAUSTED, 0.0).log() + worth

    def update(number: int, best: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        pivot = pivots[:, number : number + 1]
        torch.gather(left, 1, best, out=pivot)
        row = _row(similar, best)
        if number:
            known = rows[:, :number]
            at = _column(known, best)[:, None]
            with torch.autocast(row.device.type, enabled=False):
                row = torch.baddbmm(row[:, None], at, known, alpha=-1)[:, 0]
        sure = threshold(pivot, _EXHAUSTED, math.inf).rsqrt()  # 0 where it is rounding
        row = torch.mul(row, sure, out=rows[:, number])
        left.addcmul_(row, row, value=-1)
        return gains()

    picks = _greedy(gains(), valid, count, update)
    sure = (pivots > _EXHAUSTED).long().cummin(1).values
    return _sound(_spread_behind(picks, sure.bool(), valid), told, valid), sure.sum(1)


def _column(matrix: torch.Tensor, best: torch.Tensor) -> torch.Tensor:
    """Column `best` [G, 1] of each matrix [G, m, n]: [G, m]."""
    return matrix.gather(2, best[:, None].expand(-1, matrix.shape[1], 1))[..., 0]


def _spread_behind(picks: torch.Tensor, sure: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """The picks up to the first that is not `sure` [G, count], and then what is left, spread."""
    count = picks.shape[1]
    place = torch.arange(valid.shape[1], device=picks.device)
    key = (-1.0 - golden_spread(place)).expand(valid.shape).masked_fill(~valid, _NOTHING)
    behind = torch.arange(count, 0, -1, device=picks.device, dtype=key.dtype).expand(picks.shape)
    safe = picks.clamp_min(0)
    # Behind the end of a small pool stands a token of it once more: its first place counts.
    known = torch.where(sure, behind, key.gather(1, safe))
    key = key.scatter_reduce(1, safe, known, "amax")
    return key.argsort(dim=1, descending=True, stable=True)[:, :count]


def facility(
    similar: torch.Tensor, quality: torch.Tensor, valid: torch.Tensor, count: int
) -> torch.Tensor:
    """Facility location: each next one adds most to how well all are covered, times its weight.

    Products are sums of logarithms, so that no range of weights loses a token to rounding.

    A token is covered as well as the chosen one most similar to it covers it, and by none at
    first: similarities below 0 never help.

    Args:
        similar: float32 [G, n, n]. `valid`: bool [G, n].
        quality: float32 [G, n], the logarithm of the weight.
        count: how many.

    Returns:
        int64 [G, count], as chosen.
    """
    similar = similar.masked_fill(~(valid[:, None] & valid[:, :, None]), 0)
    covered = similar.new_zeros(quality.shape)
    worth = quality.clamp_min(_WORTHLESS)

    def gains() -> torch.Tensor:
        more = (similar - covered[:, :, None]).clamp_min(0).sum(1)
        return more.log().clamp_min(_WORTHLESS) + worth

    def update(_: int, best: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        nonlocal covered
        covered = torch.maximum(covered, _row(similar, best))
        return gains()

    return _greedy(gains(), valid, count, update)


def marginal_relevance(
    similar: torch.Tensor,
    importance: torch.Tensor,
    valid: torch.Tensor,
    count: int,
    trade: float,
) -> torch.Tensor:
    """Maximal marginal relevance: `trade` x importance - (1 - `trade`) x likeness to the chosen.

    Carbonell and Goldstein, SIGIR 1998. The first is the most important.

    Args:
        similar: float32 [G, n, n]. `valid`: bool [G, n].
        importance: float32 [G, n].
        count: how many. `trade`: 1 is importance alone.

    Returns:
        int64 [G, count], as chosen.
    """
    likeness = similar.new_full(importance.shape, _NOTHING)

    def update(_: int, best: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        nonlocal likeness
        likeness = torch.maximum(likeness, _row(similar, best))
        return trade * importance - (1 - trade) * likeness

    return _greedy(importance, valid, count, update)


def rows_of(chosen: Sequence[torch.Tensor], most: int) -> torch.Tensor:
    """Orders of several lengths as int64 [G, most]; behind a row's end stands its first again."""
    filled = [torch.cat((row, row[:1].expand(max(0, most - len(row))))) for row in chosen]
    return torch.stack([row[:most] for row in filled])


def finite(score: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """A score [G, n] with the largest finite one where it is infinite, and 0 where not `valid`."""
    score = score.masked_fill(~valid, 0)
    return score.minimum(score.masked_fill(score.isinf(), 0).amax(1, keepdim=True))


def of_largest(score: torch.Tensor) -> torch.Tensor:
    """A score [G, n], not negative, as shares of each pool's largest.

    Attention is the smaller the more patches there are, and must not fall below what counts.
    """
    return score / score.amax(1, keepdim=True).clamp_min(torch.finfo(score.dtype).tiny)


def spread_to_one(score: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """A score [G, n] brought to 0..1 in each pool; 1 everywhere where all are alike."""
    least = score.masked_fill(~valid, float("inf")).amin(1, keepdim=True)
    most = score.masked_fill(~valid, _NOTHING).amax(1, keepdim=True)
    wide = most - least
    return torch.where(wide > 1e-6, (score - least) / wide.clamp_min(1e-6), 1.0).clamp(0, 1)
