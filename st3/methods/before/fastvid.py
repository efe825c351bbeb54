"""FastVID: salient tokens of every frame, and anchors into which the rest of a segment merges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from st3.methods.by_clip import Cut, each_clip
from st3.methods.merge import Part
from st3.methods.selecting import Chosen, Selecting

if TYPE_CHECKING:
    import torch

    from st3.methods.budget import Budget
    from st3.methods.view import View


@dataclass(frozen=True)
class FastVID(Selecting):
    """A video in segments of like frames: salient tokens of each frame, and merged anchors.

    Shen et al., *FastVID*, NeurIPS 2025. Segments end where neighbouring frames differ. The tower's
    attention gives each frame its salient tokens; a share of the budget goes to anchor frames,
    every so many from a segment's end, whose peaks of density take in what is like them in all of
    the segment. A set that merges.

    Attributes:
        least: c, segments at least. `same`: tau, the cosine of frames below which one ends.
        density: d, share of the budget for anchors.
        step: p, frames from anchor frame to anchor frame.
        beta: least weight of an anchor in what it becomes.
    """

    name: ClassVar[str] = "fastvid"
    source: ClassVar[str] = "FastVID, arXiv 2503.11187"
    needs: ClassVar[tuple[str, ...]] = ("features", "videos", "attention features")
    is_set: ClassVar[bool] = True
    differs: ClassVar[str] = (
        "frames are compared by the mean of their tokens, and tokens are salient by the tower's "
        "attention, where theirs asks SigLIP's pooling head, which language models leave out; "
        "tokens that rounding leaves of the budget go to the next salient ones, frames in turn; no "
        "noise among equals; positions kept; a picture is a video of one frame"
    )
    published: ClassVar[Mapping[str, str]] = {
        "10%": "keep=10%,least=8,same=0.9,density=0.4,step=4,beta=0.6"
    }

    keep: float | int | str = "10%"
    per: str = "prompt"
    least: int = 8
    same: float = 0.9
    density: float = 0.4
    step: int = 4
    beta: float = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("least", "step"):
            if getattr(self, name) < 1:
                raise ValueError(f"fastvid: {name} must be at least 1, got {getattr(self, name)}")
        for name in ("density", "beta"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"fastvid: {name} must be a share, got {getattr(self, name):g}")
        if not -1 <= self.same <= 1:
            raise ValueError(f"fastvid: same must be a cosine, got {self.same:g}")

    def budget(self) -> Budget:
        return replace(super().budget(), down=True)

    def choose(self, view: View) -> Chosen:
        attention = view.tower.attention("features").clamp_max(1)
        return each_clip(view, self._cut, attention)

    def _cut(self, tokens: torch.Tensor, attention: torch.Tensor, count: int) -> Cut:
        import torch

        from st3.methods.clusters import density_peaks, distances, segments
        from st3.methods.orders import order_of, rank

        frames, size, _ = tokens.shape
        context = int(count // frames * self.density + 1e-9)
        number = rank(attention)
        salient = number < count // frames - context
        # Anchor frames, counted from the end of their segment, and their anchors.
        first, last = segments(tokens.mean(1), self.least, self.same)
        length, frame = last - first + 1, torch.arange(frames, device=tokens.device)
        anchored = (last - frame) % self.step == 0
        many = context * length // ((length + self.step - 1) // self.step)
        many = many.masked_fill(~anchored, 0)[:, None]
        peak = rank(density_peaks(distances(tokens), ~salient, nearest=4))
        anchor = ~salient & (peak < many)
        kind = torch.where(salient, 0, torch.where(anchor, 1, 2))
        picks = order_of(kind, torch.where(anchor, peak, number))
        if not context or count == frames * size:
            return Cut(picks)
        widest = min(size, context * self.step)
        return Cut(picks, self._merge(tokens, ~salient, anchor, peak, first, last, widest))

    def _merge(
        self, tokens: torch.Tensor, joins: torch.Tensor, anchor: torch.Tensor, peak: torch.Tensor,
        first: torch.Tensor, last: torch.Tensor, widest: int,
    ) -> Part:  # fmt: skip
        """Every token that `joins`, in each anchor frame of its segment into the likest anchor."""
        import torch
        from torch.nn.functional import normalize

        frames, size, width = tokens.shape
        units = normalize(tokens, dim=-1)
        best = peak.argsort(dim=1)[:, :widest]  # anchors come first, by their peaks
        alive = anchor.gather(1, best)
        centres = units.gather(1, best[..., None].expand(-1, -1, width))
        own = torch.arange(frames * size, device=tokens.device).view(frames, size)
        into, valid = [], []
        for back in range(0, frames, self.step):
            there, at = last - back >= first, (last - back).clamp_min(0)
            named = at[:, None] * size + best[at]
            with torch.autocast(tokens.device.type, enabled=False):
                alike = centres[at] @ units.transpose(1, 2)  # [frames, widest, size]
            alike = alike.masked_fill(~alive[at][..., None], -2)
            alike = alike.masked_fill((named[..., None] == own[:, None]) & (alike > -2), 2)
            into.append(named.gather(1, alike.argmax(1)))
            valid.append(joins & there[:, None] & alive[at].any(1, keepdim=True))
        goal, joined = torch.cat(into).flatten(), torch.cat(valid).flatten()
        of = own.repeat(len(into), 1).flatten()
        members = torch.zeros_like(own).flatten().scatter_add_(0, goal, joined.long())[goal]
        keep = (1 / (members + 1.0)).clamp_min(self.beta)
        weight = (1 - keep) / members.clamp_min(1) + keep * (goal == of)
        return Part(goal, of, weight * joined)


METHOD = FastVID
