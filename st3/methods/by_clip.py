"""A pool's videos chosen from one by one, and how they share its budget.

A picture is a video of one frame. Tokens of no frame, such as the mark with which a family ends a
video, come first: there are few, and decoders were trained to see them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from st3.methods.clips import Clip

if TYPE_CHECKING:
    import torch

    from st3.methods.selecting import Chosen, Merge
    from st3.methods.view import View


@dataclass(frozen=True)
class Cut:
    """What is chosen of one clip.

    Attributes:
        picks: int64 [n], all its tokens, those that stay first, by falling importance.
        merge: as in `Chosen`, of its own tokens alone and without the dimension of pools.
    """

    picks: torch.Tensor
    merge: Merge | None = None


Choose = Callable[["torch.Tensor", int, Clip, int], Cut]
"""Of features [frames, size, d], the number of the pool, the clip, and how many are to stay."""


def each_clip(view: View, choose: Choose) -> Chosen:
    """Let every video be chosen from by itself, with the share of the budget that is its own.

    Budgets of clips are proportional to their tokens, to the nearest (`dealt`), and add up to the
    pool's.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    from st3.methods.greedy import rows_of
    from st3.methods.selecting import Chosen, Merge

    rows, merges = [], []
    for pool, clips in enumerate(view.clips()):
        size, count = view.sizes[pool], view.counts[pool]
        inside = {n for clip in clips for n in range(clip.first, clip.first + clip.tokens)}
        marks = tuple(n for n in range(size) if n not in inside)
        turns = dealt(tuple(clip.tokens for clip in clips))
        taken = turns[: max(0, count - len(marks))]
        order = torch.empty(size, dtype=torch.long, device=view.valid.device)
        if marks:
            order[: len(marks)] = view.placed(marks)
        merge: list[Merge] = []
        for number, clip in enumerate(clips):
            tokens = view.features[pool, clip.inside].float().view(clip.frames, clip.size, -1)
            cut = choose(tokens, pool, clip, taken.count(number))
            places = tuple(n for n, which in enumerate(turns, len(marks)) if which == number)
            order[view.placed(places)] = cut.picks + clip.first
            if cut.merge is not None:
                into, of = cut.merge.into + clip.first, cut.merge.of + clip.first
                merge.append(Merge(into, of, cut.merge.weight))
        rows.append(order)
        merges.append(merge)
    picks = rows_of(rows, view.most)
    if not any(merges):
        return Chosen(picks)
    nothing = Merge(picks.new_empty(0), picks.new_empty(0), view.features.new_empty(0).float())
    parts = [
        pad_sequence(
            [torch.cat([getattr(one, part) for one in (nothing, *merge)]) for merge in merges],
            batch_first=True,
        )
        for part in ("into", "of", "weight")
    ]
    return Chosen(picks, Merge(*parts))


@lru_cache(maxsize=64)
def dealt(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Whose turn it is, until all have all: of every prefix each gets its share, to the nearest.

    Webster's rule: the j-th of a clip of n tokens, from 0, comes at (j + 1/2) / n.
    """
    turns = [((2 * j + 1) / size, which) for which, size in enumerate(sizes) for j in range(size)]
    return tuple(which for _, which in sorted(turns))


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
    """int64 of the shape of a score: 0 for the greatest of the last dimension, and so on."""
    best = score.argsort(dim=-1, descending=True, stable=True)
    return best.argsort(dim=-1)
