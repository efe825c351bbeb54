"""HoliTom's outer stage: what stands still is seen once, the rest by attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from st3.methods.by_clip import Cut, each_clip
from st3.methods.merge import Part
from st3.methods.selecting import Chosen, Selecting

if TYPE_CHECKING:
    import torch

    from st3.methods.view import View


@dataclass(frozen=True)
class HoliTom(Selecting):
    """Windows of time in which much stands still; that is averaged there, and thinned like a frame.

    Shao et al., *HoliTom*, NeurIPS 2025, its stage before the decoder. Of what moves, each frame
    keeps what the tower attends to; what stands still becomes clusters. A set that merges.

    Attributes:
        same: tau, the cosine above which a token stands still from frame to frame.
        beta: weight of a centre in what it becomes; the mean of its cluster has the rest.
        contextual: D, the share of a frame's moving tokens that are centres of clusters, too.
    """

    name: ClassVar[str] = "holitom"
    source: ClassVar[str] = "HoliTom, arXiv 2505.21334"
    needs: ClassVar[tuple[str, ...]] = ("features", "videos", "received last")
    is_set: ClassVar[bool] = True
    differs: ClassVar[str] = (
        "the stage before the decoder alone; the budget is met to the token (frames and windows "
        "get their shares by Webster's rule), where theirs rounds each; a centre belongs to its "
        "cluster; of windows worth the same, the last one is the shorter; positions kept; a "
        "picture is a video of one frame"
    )
    published: ClassVar[Mapping[str, str]] = {
        "15%": "keep=15%,same=0.8,beta=0.6",
        "10%": "keep=10%,same=0.8,beta=0.6",
        "20%": "keep=20%,same=0.8,beta=0.6",
    }

    keep: float | int | str = "15%"
    per: str = "prompt"
    same: float = 0.8
    beta: float = 0.6
    contextual: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("beta", "contextual"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"holitom: {name} must be a share, got {getattr(self, name):g}")
        if not -1 <= self.same <= 1:
            raise ValueError(f"holitom: same must be a cosine, got {self.same:g}")

    def choose(self, view: View) -> Chosen:
        attention = view.tower.received("last").clamp_max(1)
        return each_clip(view, self._cut, attention)

    def _cut(self, tokens: torch.Tensor, attention: torch.Tensor, count: int) -> Cut:
        import torch
        from torch.nn.functional import normalize

        from st3.methods.clusters import apportioned, density_peaks, distances, still_windows
        from st3.methods.orders import order_of, rank

        frames, size, width = tokens.shape
        units, standing = normalize(tokens, dim=-1), rank(attention.flatten()).view(frames, size)
        first, _, still = still_windows((units[1:] * units[:-1]).sum(-1) > self.same)
        frame = torch.arange(frames, device=tokens.device)
        again = still & (frame > first)[:, None]
        # Where the budget is for more than what is seen once, some stay that would be seen again.
        spare = count - (~again).sum()
        stays = again & (rank(standing.masked_fill(~again, frames * size).neg().flatten()).view(
            frames, size) < spare)  # fmt: skip
        own = torch.arange(frames * size, device=tokens.device).view(frames, size)
        once = torch.where(again & ~stays, own - (frame - first)[:, None] * size, own).flatten()
        copies = torch.zeros_like(once).scatter_add_(0, once, torch.ones_like(once))
        mean = torch.zeros(frames * size, width, device=tokens.device)
        mean = mean.index_add_(0, once, tokens.flatten(0, 1)) / copies.clamp_min(1)[:, None]
        # What moves in each frame, and behind that what stands still from there on.
        inside = torch.cat((~still, still & ~again))
        seats = apportioned(inside.sum(1), size, count)
        by_attention = (seats * (1 - self.contextual)).round().long()
        by_attention[frames:] = 0
        number = rank(attention.repeat(2, 1).masked_fill(~inside, -1))
        clustered = inside & (number >= by_attention[:, None])
        far = distances(mean.view(tokens.shape)).repeat(2, 1, 1)
        peak = rank(density_peaks(far, clustered, nearest=7))
        centre = clustered & (peak < (seats - by_attention)[:, None])
        chosen = (inside & ~clustered) | centre
        picked = chosen[:frames] | chosen[frames:]
        kind = torch.where(picked, 0, torch.where(stays, 1, 2))
        picks = order_of(kind, standing)
        if count == frames * size:
            return Cut(picks)
        far.diagonal(dim1=1, dim2=2).fill_(-1)  # a centre is of its own cluster
        near = far.masked_fill(~centre[:, None], float("inf")).argmin(2)
        joins = clustered & centre.any(1, keepdim=True)
        both = torch.where(joins, near + (frame * size).repeat(2)[:, None], 0)
        goal = (both[:frames] + both[frames:]).flatten()
        member = (joins[:frames] | joins[frames:]).flatten()
        members = torch.zeros_like(goal).scatter_add_(0, goal, member.long())[goal]
        weight = (1 - self.beta) / members.clamp_min(1) + self.beta * (goal == own.flatten())
        weight = weight * member / copies.clamp_min(1)
        return Cut(picks, Part(goal[once], own.flatten(), weight[once]))


METHOD = HoliTom
