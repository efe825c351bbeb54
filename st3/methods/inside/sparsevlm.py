"""SparseVLM: words that look at the picture rate its tokens; what leaves may be recycled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from st3.methods.deciding import Deciding
from st3.methods.schedule import Schedule, tidy

if TYPE_CHECKING:
    import torch

    from st3.methods.merge import Merge
    from st3.methods.scorers import LayerView

_OF = 576
_TABLES = {
    "192": (300, 200, 110),
    "128": (303, 110, 36),
    "96": (238, 48, 26),
    "64": (66, 30, 17),
    "v2-192": (300, 200, 118),
    "v2-128": (238, 108, 60),
    "v2-96": (246, 54, 28),
    "v2-64": (66, 34, 20),
}
"""Average budget of 32 layers -> tokens that the three cuts leave of 576 (the authors' code).

Of the first version with what is recycled on top, of the second (v2) without. The averages are as
the authors count, a layer that decides as if it were trimmed."""
_DECIDE = (3, 7, 16)
"""Layers of 32, from 1, whose attention decides: the authors' 2, 6 and 15, from 0."""


@dataclass(frozen=True)
class SparseVLM(Deciding):
    """Three cuts by attention from the words of the question that have to do with the picture.

    Zhang et al., *SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model
    Inference*, ICML 2025. Raters are words whose match with the picture, by products of embeddings
    and a softmax over words, is above their mean. With `recycle` the best 30 % of what a cut drops
    are clustered, and the mean of each cluster stays at the place of its centre.

    Attributes:
        keep: what the cuts leave: a budget of the authors' tables (192, 128, 96 or 64 of 576
            tokens, averaged over layers; v2-192 and so on of their second version), or three
            shares, such as 50%/30%/15%.
        recycle: whether means of dropped tokens stay, about 3 % of these.
    """

    name: ClassVar[str] = "sparsevlm"
    source: ClassVar[str] = "SparseVLM, arXiv 2410.04417"
    needs: ClassVar[tuple[str, ...]] = ("embeddings",)
    across_ranks: ClassVar[bool] = True
    differs: ClassVar[str] = (
        "positions are kept (the authors' second version does, their first counts anew); a "
        "recycled token stands where its cluster's centre stood; no noise in densities. Tables are "
        "of 576 tokens and 32 layers: others get the same shares, at the same depth"
    )
    published: ClassVar[Mapping[str, str]] = {
        name: f"keep={name},recycle={str(name.isdecimal()).lower()}" for name in _TABLES
    }

    keep: str = "192"
    recycle: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._shares()

    def schedule(self, layers: int) -> Schedule:
        if layers < len(_DECIDE) + 1:
            raise ValueError(f"sparsevlm: three cuts need at least 4 layers, there are {layers}")
        cuts: list[int] = []
        for number, of_32 in enumerate(_DECIDE):
            least = cuts[-1] + 1 if cuts else 1
            cuts.append(min(max(least, round(of_32 * layers / 32)), layers - 3 + number))
        keeps, alive = [1.0] * layers, 1.0
        for cut, share in zip(cuts, self._shares(), strict=True):
            if self.recycle:  # by the counts of 576, where the authors' have no fractions
                share = min(alive, (share * _OF + _clusters(alive * _OF, share * _OF)) / _OF)
            alive = tidy(share)
            keeps[cut:] = [alive] * (layers - cut)
        return Schedule(tuple(keeps))

    def _shares(self) -> tuple[float, ...]:
        table = _TABLES.get(str(self.keep))
        if table is not None:
            return tuple(count / _OF for count in table)
        try:
            parts = str(self.keep).split("/")
            found = tuple(float(x[:-1]) / 100 if x.endswith("%") else float(x) for x in parts)
        except ValueError:
            found = ()
        falls = all(a >= b for a, b in zip((1.0, *found), found, strict=False))
        if len(found) != len(_DECIDE) or not falls or min(found) < 0:
            raise ValueError(
                f"sparsevlm: keep must be one of {', '.join(_TABLES)}, or three falling shares "
                f"such as 50%/30%/15%, got {self.keep!r}"
            )
        return found

    def asks(self) -> tuple[str, ...]:
        return ("embeddings", "states") if self.recycle else self.needs

    def score(self, view: LayerView) -> torch.Tensor:
        import torch

        embedded, visual = view.look.embeddings()
        asks = view.asks()
        words = embedded[:, -view.trailing :].float()
        with torch.autocast(words.device.type, enabled=False):
            match = embedded.float() @ words.transpose(1, 2)
        match = match.masked_fill(~asks[:, None], torch.finfo(torch.float32).min).softmax(-1)
        many = visual.sum(1, keepdim=True).clamp_min(1)
        rating = (match * visual[..., None]).sum(1) / many  # [B, trailing]
        mean = rating.masked_fill(~asks, 0).sum(1, keepdim=True) / asks.sum(1, keepdim=True)
        raters = asks & (rating > mean)
        raters = torch.where(raters.any(1, keepdim=True), raters, asks).float()
        return view.received(raters / raters.sum(1, keepdim=True))

    def judge(self, view: LayerView) -> tuple[torch.Tensor, Merge | None]:
        score = self.score(view)
        if not self.recycle or not view.counts:
            return score, None
        from st3.methods.recycling import recycled

        tokens = view.visual.shape[1]
        here = view.visual if view.valid is None else view.visual & view.valid[:, -tokens:]
        parts = [
            _parts(alive, count) for alive, count in zip(view.before, view.counts, strict=True)
        ]
        return recycled(view.look.states().float(), score, here, parts)


def _clusters(alive: float, kept: float) -> int:
    """How many clusters what is dropped of `alive` tokens makes: a tenth of its best 30 %."""
    dropped = round(alive) - round(kept)
    return (int(0.3 * dropped) + 1) // 10 + 1 if dropped > 0 else 0


def _parts(alive: int, count: int) -> tuple[int, int, int]:
    """Of `count` tokens that stay of `alive`: kept ones, clusters, and tokens in these."""
    for kept in range(count, -1, -1):
        clusters = _clusters(alive, kept)
        if kept + clusters <= count:
            clusters = count - kept
            return kept, clusters, max(clusters, min(alive - kept, int(0.3 * (alive - kept)) + 1))
    return count, 0, 0


METHOD = SparseVLM
