"""Average pooling: downsampling that takes the mean of each cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from st3.methods.before.downsample import Downsample


@dataclass(frozen=True)
class Pool(Downsample):
    """The mean of each cell of a coarser grid, in the place of its middle token.

    A baseline; a set, and the one of these methods that merges.
    """

    name: ClassVar[str] = "pool"
    needs: ClassVar[tuple[str, ...]] = ("features", "grid")
    differs: ClassVar[str] = (
        "after the projector; a budget that no grid meets is filled up with single tokens"
    )

    averages: ClassVar[bool] = True


METHOD = Pool
