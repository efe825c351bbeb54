"""Downsampling: the tokens of an even, coarser grid; the baseline that methods must beat."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from st3.methods.selecting import Chosen, Merge, Selecting

if TYPE_CHECKING:
    from st3.methods.view import View


@dataclass(frozen=True)
class Downsample(Selecting):
    """The tokens in the middle of the cells of a coarser grid, whatever the picture shows.

    A baseline: on common benchmarks a smaller picture beats many methods (VTC-Bench, arXiv
    2510.07143). A set: grids of several budgets do not nest.
    """

    name: ClassVar[str] = "downsample"
    source: ClassVar[str] = "baseline"
    needs: ClassVar[tuple[str, ...]] = ("grid",)
    is_set: ClassVar[bool] = True
    differs: ClassVar[str] = (
        "tokens of the picture as it is, not of a picture made smaller; a budget that no grid "
        "meets is filled up with tokens spread evenly"
    )
    published: ClassVar[Mapping[str, str]] = {"quarter": "keep=25%", "ninth": "keep=11.1%"}

    averages: ClassVar[bool] = False

    def choose(self, view: View) -> Chosen:
        import torch

        from st3.methods.cells import divided, filled
        from st3.methods.greedy import rows_of
        from st3.methods.view import fixed

        grids = view.grids()
        if None in grids:
            view.note("no grid of tokens: cells are stretches of the prompt")
        device, widest = view.valid.device, view.valid.shape[1]
        picks, into, many = [], [], []
        for grid, size, count in zip(grids, view.sizes, view.counts, strict=True):
            cells = divided(*(grid or (1, size)), count)
            picks.append(fixed(filled(size, cells, count), device))
            sizes, rest = Counter(cells.cell), (0,) * (widest - size)
            into.append(fixed(tuple(cells.centre[cell] for cell in cells.cell) + rest, device))
            many.append(fixed(tuple(sizes[cell] for cell in cells.cell) + rest, device))
        merge = None
        if self.averages:
            of = torch.arange(widest, device=device).expand(len(into), widest)
            inside = torch.stack(many)
            weight = torch.where(inside > 0, 1 / inside.clamp_min(1), 0)
            merge = Merge(torch.stack(into), of, weight)
        return Chosen(rows_of(picks, view.most), merge)


METHOD = Downsample
