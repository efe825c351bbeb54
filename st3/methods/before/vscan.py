"""VScan: two scans of the tower, merging, and a second cut in the middle of the decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

from st3.methods.schedule import Schedule, tidy
from st3.methods.selecting import Chosen, Selecting

if TYPE_CHECKING:
    from st3.methods.view import View

_SIDE = 6  # of a window, in tokens


@dataclass(frozen=True)
class VScan(Selecting):
    """What an early layer of the tower sees in each window, and a late one in all; others merged.

    Zhang et al., *VScan*, TMLR 2026. Of the budget a part goes by an early layer's attention, alike
    in every window of the picture, the rest by the late layer's. What is left out goes to the most
    similar of those that stay, to the mean. In the decoder the last token's attention cuts once
    more. A set.

    Attributes:
        local: share of the budget for the windows, rounded down.
        early: their layer, a share of the tower's depth.
        middle: share of the decoder's depth behind which the second cut comes.
        second: what stays there, of what entered.
    """

    name: ClassVar[str] = "vscan"
    source: ClassVar[str] = "VScan, arXiv 2505.22654"
    stage: ClassVar[str] = "before the decoder, and once in it"
    needs: ClassVar[tuple[str, ...]] = (
        "attention 0.25", "attention features", "features", "grid",
    )  # fmt: skip
    is_set: ClassVar[bool] = True
    differs: ClassVar[str] = (
        "where windows do not share their part evenly, the late layer fills it up; positions after "
        "the second cut are kept, theirs count anew; windows of 6 x 6 tokens in every family, and "
        "a layer with windows of its own is the next one without"
    )
    published: ClassVar[Mapping[str, str]] = {
        "64": "keep=96,second=0.333,positions=compact",
        "qwen": "keep=16.7%,second=0.333",
    }

    scorer: str = "last-token"
    keep: float | int | str = "16.7%"
    local: float = 0.5
    early: float = 0.25
    middle: float = 0.5
    second: float = 0.333

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("local", "early", "middle", "second"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"vscan: {name} must be a share, got {value:g}")

    def asks(self) -> tuple[str, ...]:
        return f"attention {self.early:g}", *self.needs[1:]

    def schedule(self, layers: int) -> Schedule:
        whole = max(1, round(self.middle * layers))
        keeps = (1.0,) * whole + (tidy(self.second),) * (layers - whole)
        return replace(super().schedule(layers), keeps=keeps)

    def choose(self, view: View) -> Chosen:
        import torch

        from st3.methods.greedy import ranked, rows_of, similarities
        from st3.methods.merge import Part
        from st3.methods.merging import means_into, padded
        from st3.methods.view import fixed

        tower, device = view.tower, view.valid.device
        near, wide = tower.attention(f"{self.early:g}"), tower.attention("features")
        order = ranked(near, view.valid, view.valid.shape[1])
        similar = similarities(view.units())
        grids = view.grids()
        if None in grids:
            view.note("no grid of tokens: windows are stretches of the prompt")
        picks, parts = [], []
        for pool, (size, count) in enumerate(zip(view.sizes, view.counts, strict=True)):
            window, within = _windows(*(grids[pool] or (1, size)))
            each = int(count * self.local + 1e-9) // (max(window) + 1)
            best = order[pool, :size]
            by_window = best[fixed(window, device)[best].argsort(stable=True)]
            first = torch.zeros(size, dtype=torch.bool, device=device)
            first[by_window] = fixed(within, device) < each
            mark = wide[pool, :size].isinf()
            score = wide[pool, :size].clamp_max(1).double() + 2 * first + 4 * mark
            found = ranked(score[None], view.valid[pool, None, :size], size)[0]
            found = found.masked_fill((best < 0).any(), -1)  # scores that are no numbers
            stays, others = found[:count].clamp_min(0), found[count:].clamp_min(0)
            picks.append(found)
            parts.append([Part(stays, stays, torch.ones_like(stays).float())])
            if len(others):
                likeness = similar[pool][others[:, None], stays].masked_fill(mark[stays], -2)
                taken = means_into(stays, others, likeness, torch.ones_like(mark[others]), own=1)
                many = taken.weight.new_ones(size).index_add_(
                    0, taken.into, torch.ones_like(taken.weight)
                )
                parts[-1] = [Part(stays, stays, 1 / many[stays]), taken]
        return Chosen(rows_of(picks, view.most), padded(parts))


@lru_cache(maxsize=64)
def _windows(high: int, wide: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of each token of a grid its window; and, window by window, numbers of the tokens in each.

    A grid of one line has stretches as long as a window is large.
    """
    if high == 1:
        window = [n // _SIDE**2 for n in range(wide)]
    else:
        lines = -(-wide // _SIDE)
        window = [y // _SIDE * lines + x // _SIDE for y in range(high) for x in range(wide)]
    sizes = [window.count(n) for n in range(max(window) + 1)]
    return tuple(window), tuple(n for many in sizes for n in range(many))


METHOD = VScan
