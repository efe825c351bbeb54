"""FastV with attention that knows no positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from st3.methods.deciding import Deciding
from st3.methods.dial import Dial
from st3.methods.schedule import Schedule, one_cut

if TYPE_CHECKING:
    import torch

    from st3.methods.scorers import LayerView


@dataclass(frozen=True)
class FastVNoRoPE(Deciding):
    """FastV's one cut, by attention without rotary positions, which favour the picture's end.

    The first of two corrections that Endo et al. make, *Feather the Throttle*, ICCV 2025; `feather`
    has both. Queries and keys are computed once more in the layer that decides.

    Attributes:
        k: layers that see every visual token; 1 <= K < L.
        r: the share dropped after them.
    """

    name: ClassVar[str] = "fastv_norope"
    source: ClassVar[str] = "FEATHER, arXiv 2412.13180"
    needs: ClassVar[tuple[str, ...]] = ("unrotated",)
    across_ranks: ClassVar[bool] = True

    dial: ClassVar[Dial | None] = Dial("r", 1.0, 0.0)

    k: int = 2
    r: float = 0.5

    def schedule(self, layers: int) -> Schedule:
        return one_cut(self.name, layers, self.k, 1 - self.r)

    def score(self, view: LayerView) -> torch.Tensor:
        from st3.methods.unrotated import unrotated_attention

        return unrotated_attention(view)


METHOD = FastVNoRoPE
