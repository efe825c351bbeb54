"""A pool's videos chosen from one by one, and how they share its budget.

A picture is a video of one frame. Tokens of no frame, such as the mark with which a family ends a
video, come first: there are few, and decoders were trained to see them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from st3.methods.merge import Part

if TYPE_CHECKING:
    import torch

    from st3.methods.selecting import Chosen
    from st3.methods.view import View


@dataclass(frozen=True)
class Cut:
    """What is chosen of one clip.

    Attributes:
        picks: int64 [n], all its tokens, those that stay first, by falling importance.
        part: what is merged, by numbers of its own tokens; None for nothing.
    """

    picks: torch.Tensor
    part: Part | None = None


Choose = Callable[["torch.Tensor", "torch.Tensor", int], Cut]
"""Of features [frames, size, d], a score of them [frames, size], and how many are to stay."""


def each_clip(view: View, choose: Choose, score: torch.Tensor | None = None) -> Chosen:
    """Let every video be chosen from by itself, with the share of the budget that is its own.

    Budgets of clips are proportional to their tokens, to the nearest (`dealt`), and add up to the
    pool's.

    Args:
        choose: from one of them.
        score: float32 [G, n], handed on; by default nought.
    """
    import torch

    from st3.methods.greedy import rows_of
    from st3.methods.merging import padded
    from st3.methods.selecting import Chosen

    score = torch.zeros(view.valid.shape, device=view.valid.device) if score is None else score
    rows, parts = [], []
    empty = torch.empty(0, dtype=torch.long, device=view.valid.device)
    nothing = Part(empty, empty, empty.float())
    for pool, clips in enumerate(view.clips()):
        size, count = view.sizes[pool], view.counts[pool]
        inside = {n for clip in clips for n in range(clip.first, clip.first + clip.tokens)}
        marks = tuple(n for n in range(size) if n not in inside)
        turns = dealt(tuple(clip.tokens for clip in clips))
        taken = turns[: max(0, count - len(marks))]
        order = torch.empty(size, dtype=torch.long, device=view.valid.device)
        if marks:
            order[: len(marks)] = view.placed(marks)
        mine = [nothing]
        for number, clip in enumerate(clips):
            tokens = view.features[pool, clip.inside].float().view(clip.frames, clip.size, -1)
            own = score[pool, clip.inside].view(clip.frames, clip.size)
            cut = choose(tokens, own, taken.count(number))
            places = tuple(n for n, which in enumerate(turns, len(marks)) if which == number)
            order[view.placed(places)] = cut.picks + clip.first
            if cut.part is not None:
                into, of = cut.part.into + clip.first, cut.part.of + clip.first
                mine.append(Part(into, of, cut.part.weight))
        rows.append(order)
        parts.append(mine)
    picks = rows_of(rows, view.most)
    merges = any(len(mine) > 1 for mine in parts)
    return Chosen(picks, padded(parts) if merges else None)


@lru_cache(maxsize=64)
def dealt(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Whose turn it is, until all have all: of every prefix each gets its share, to the nearest.

    Webster's rule: the j-th of a clip of n tokens, from 0, comes at (j + 1/2) / n.
    """
    turns = [((2 * j + 1) / size, which) for which, size in enumerate(sizes) for j in range(size)]
    return tuple(which for _, which in sorted(turns))
