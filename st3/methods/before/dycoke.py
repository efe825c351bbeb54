"""DyCoke's first stage: of four frames one whole, of the others what changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from st3.methods.by_clip import Cut, each_clip
from st3.methods.selecting import Chosen, Selecting

if TYPE_CHECKING:
    import torch

    from st3.methods.budget import Budget
    from st3.methods.view import View


@dataclass(frozen=True)
class DyCoke(Selecting):
    """Every fourth frame whole; of the next, the one after and the last what is least like before.

    Tao et al., *DyCoke*, CVPR 2025, token merging over time (which drops and merges nothing).
    Frames 1 and 3 of four are compared with the one before, frame 2 with frame 0, place by place.
    Here the budget says how much of them stays; k of the paper is (1 - keep) * 4/3. An order.
    """

    name: ClassVar[str] = "dycoke"
    source: ClassVar[str] = "DyCoke, arXiv 2411.15024"
    needs: ClassVar[tuple[str, ...]] = ("features", "videos")
    differs: ClassVar[str] = (
        "the stage before the decoder alone; a last group of less than four frames is thinned like "
        "any other, where their code drops a last odd frame and leaves the last group as it is; a "
        "budget below the whole frames' takes these in turn, spread over each; a picture is a "
        "video of one frame"
    )
    published: ClassVar[Mapping[str, str]] = {
        "k=0.3": "keep=77.5%",
        "k=0.5": "keep=62.5%",
        "k=0.7": "keep=47.5%",
    }

    keep: float | int | str = "47.5%"
    per: str = "prompt"

    def budget(self) -> Budget:
        return replace(super().budget(), down=True)

    def choose(self, view: View) -> Chosen:
        return each_clip(view, self._cut)

    def _cut(self, tokens: torch.Tensor, score: torch.Tensor, count: int) -> Cut:
        import torch
        from torch.nn.functional import normalize

        from st3.methods.orders import order_of, rank
        from st3.methods.scorers import golden_spread

        frames, size, _ = tokens.shape
        units = normalize(tokens, dim=-1)
        frame = torch.arange(frames, device=tokens.device)
        before = (frame - 1 - (frame % 4 == 2).long()).clamp_min(0)
        change = rank(1 - (units * units[before]).sum(-1))
        spread = rank(-golden_spread(torch.arange(size, device=tokens.device)))
        whole = (frame % 4 == 0)[:, None].expand(change.shape)
        turn = torch.where(whole, spread, change)
        return Cut(order_of((~whole).int(), turn))


METHOD = DyCoke
