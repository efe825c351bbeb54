"""How important each visual token is, read from a handful of attention rows.

Scores are made at prefill, once a group of layers, from the layer that decides the group. The
paper's choice is `last-token`: attention of the last prompt token, softmax over all keys alive, in
fp32, averaged over heads. The others are ours, for comparison and for small models.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch

from st3.methods.attention_rows import ROWS, attention_rows
from st3.methods.look import Look
from st3.methods.merge import Merge

_GOLDEN = (5**0.5 - 1) / 2
How = Literal["mean", "max"]
"""How heads are merged."""


@dataclass(frozen=True)
class LayerView:
    """What a scorer may look at in one layer at prefill; B prompts, n tokens alive.

    Attributes:
        query: [B, query heads, n, head size], after RoPE.
        key: [B, key heads, k, head size], after RoPE: those of the n tokens last, behind what a
            conversation has said before.
        scaling: factor of the attention logits.
        valid: bool [B, k], False for padding; None where there is none.
        visual: bool [B, n], which tokens are visual.
        ordinal: int64 [B, n], for visual tokens their number among the prompt's visual tokens.
        total: visual tokens of the prompt that has most, before anything was dropped.
        trailing: number of tokens behind the last visual token (the longest prompt's), at least 1.
        allowed: number of rows -> bool [B, 1, rows, k], what the last rows see; None: causality.
        frames: makes int64 [B, n], for visual tokens the number of their frame or picture through
            the row; see `LayerView.frame`.
        softcap: logits go through softcap * tanh(logits / softcap), if there is one.
        across: where other processes hold other heads: makes what was merged over the heads here
            what it is over all of them.
        before, counts: visual tokens of each row that are alive, and that the cut will leave which
            this layer decides; no `counts` where it decides none.
        cut: the number of that cut, from 1.
        seen: what a scorer asked for by its `needs`.
    """

    query: torch.Tensor
    key: torch.Tensor
    scaling: float
    valid: torch.Tensor | None
    visual: torch.Tensor
    ordinal: torch.Tensor
    total: int
    trailing: int
    allowed: Callable[[int], torch.Tensor] | None = None
    softcap: float | None = None
    frames: Callable[[], torch.Tensor] | None = None
    across: Callable[[torch.Tensor, How], torch.Tensor] | None = None
    before: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()
    cut: int = 1
    seen: Look | None = None

    @property
    def look(self) -> Look:
        """What is there besides queries and keys."""
        if self.seen is None:
            raise ValueError("nobody looks at more than queries and keys here")
        return self.seen

    @property
    def frame(self) -> torch.Tensor:
        """int64 [B, n]: a visual token's frame of a video, or picture, counted through its row."""
        if self.frames is None:
            raise ValueError("nobody has said which frame a token belongs to")
        return self.frames()

    def rows(self, count: int) -> torch.Tensor:
        """Attention of the last `count` tokens to these, float32 [B, query heads, count, n]."""
        allowed = None if self.allowed is None else self.allowed(count)
        rows = attention_rows(
            self.query, self.key, self.scaling, self.valid, count, allowed, self.softcap
        )
        return rows[..., -self.visual.shape[1] :]

    def received(self, weights: torch.Tensor, how: How = "mean") -> torch.Tensor:
        """Attention that each token gets from the last r tokens, weighted, float32 [B, n].

        Heads are merged before rows are added. Some rows are computed at a time, so r may be all.

        Args:
            weights: float32 [B, r], of rows; 0 for those that do not count.
            how: heads are merged.
        """
        asked, alive, keys = weights.shape[1], self.visual.shape[1], self.key.shape[2]
        total: torch.Tensor | None = None
        step = max(1, ROWS // max(1, self.query.shape[0] * self.query.shape[1] * keys))
        for begin in range(alive - asked, alive, step):
            end = min(begin + step, alive)
            allowed, sees = None, keys - alive + end  # by causality, no key behind the last row
            if self.allowed is not None:
                allowed, sees = self.allowed(alive - begin)[:, :, : end - begin], keys
            rows = attention_rows(
                self.query[:, :, :end], self.key[:, :, :sees], self.scaling,
                None if self.valid is None else self.valid[:, :sees],
                end - begin, allowed, self.softcap,
            )  # fmt: skip
            weight = weights[:, begin - alive + asked : end - alive + asked]
            if how == "mean":
                part = torch.einsum("bhrn,br->bhn", rows, weight)
            else:
                part = (self.merged(rows, how) * weight[..., None]).sum(1)
            part = torch.nn.functional.pad(part, (0, keys - sees))
            total = part if total is None else total + part
        assert total is not None
        return (self.merged(total) if how == "mean" else total)[..., -alive:]

    def asks(self) -> torch.Tensor:
        """bool [B, trailing]: which of the last tokens are text, behind the last picture."""
        text = ~self.visual[:, -self.trailing :]
        return text if self.valid is None else text & self.valid[:, -self.trailing :]

    def merged(self, values: torch.Tensor, how: How = "mean") -> torch.Tensor:
        """Float32 [B, heads, ...] of query or key heads, merged over all heads: [B, ...].

        Those that other processes hold count as well. The smaller it is, the less is sent: sum
        over rows first.
        """
        found = values.mean(1) if how == "mean" else values.amax(1)
        return found if self.across is None else self.across(found, how)


class Scorer(ABC):
    """Importance of tokens; only the values of visual tokens are ever used."""

    looks_at_frames: bool = False
    """Whether it asks for `LayerView.frame`."""
    layers_summed: int = 1
    """Scores of this many layers, up to the deciding one, are added."""
    needs: tuple[str, ...] = ()
    """Of `st3.methods.look.NEEDS`, what it asks `LayerView.look` for."""

    @property
    def across_ranks(self) -> bool:
        """Whether it is right where processes hold different heads: `LayerView.merged` sees to it.

        A scorer that merges heads in no other way, or looks at none, says True.
        """
        return False

    @abstractmethod
    def score(self, view: LayerView) -> torch.Tensor:
        """float32 [B, n], greater is more important. A few rows of n: never an n x n matrix."""

    def judge(self, view: LayerView) -> tuple[torch.Tensor, Merge | None]:
        """The score, and new values of some tokens, by their numbers among those alive.

        Scorers that need `states` alone may give some: they are put in place right before the cut.
        """
        return self.score(view), None


@dataclass(frozen=True)
class AttentionScorer(Scorer):
    """Attention that each token gets from the end of the prompt.

    Attributes:
        queries: `last`: the last prompt token (paper); `prompt`: the sum over all prompt tokens
            behind the last visual token (ours).
        heads: `mean` (ours, as FastV's code does) or `max`.
        layers_summed: how many layers to add up.
    """

    queries: Literal["last", "prompt"] = "last"
    heads: How = "mean"
    layers_summed: int = 1
    across_ranks = True

    def score(self, view: LayerView) -> torch.Tensor:
        rows = 1 if self.queries == "last" else view.trailing
        probabilities = view.rows(rows)
        if rows > 1:  # a shorter prompt's rows begin with its visual tokens or padding: leave those
            asks = ~view.visual[:, -rows:]
            if view.valid is not None:
                asks = asks & view.valid[:, -rows:]
            probabilities = probabilities * asks[:, None, :, None]
        if self.heads == "mean":
            return view.merged(probabilities.sum(2))
        return view.merged(probabilities, self.heads).sum(1)


@dataclass(frozen=True)
class FramesInTurn(Scorer):
    """Frames and pictures take turns: the best token of each, the second best of each, ... (ours).

    Without it a video's kept tokens may all be of a few frames.

    Attributes:
        within: says which token of a frame is the better one.
    """

    within: Scorer = AttentionScorer()
    looks_at_frames: bool = True

    @property
    def across_ranks(self) -> bool:
        """As `within` is: the rest looks at no heads."""
        return self.within.across_ranks

    def score(self, view: LayerView) -> torch.Tensor:
        """float64: minus the turn in which a token is taken, and below 1 for its score."""
        score = self.within.score(view).masked_fill(~view.visual, float("-inf"))
        best = score.argsort(dim=1, descending=True, stable=True)
        tokens = best.shape[1]
        place = torch.arange(tokens, device=best.device).expand_as(best)
        standing = torch.empty_like(best).scatter_(1, best, place)  # 0 is the best of all
        # Frame by frame, the best of each first; what is not visual comes behind.
        frame = view.frame.masked_fill(~view.visual, tokens)
        by_frame = best.gather(1, frame.gather(1, best).argsort(dim=1, stable=True))
        its_frame = frame.gather(1, by_frame)
        begins = place == 0
        begins[:, 1:] |= its_frame[:, 1:] != its_frame[:, :-1]
        turn = place - place.masked_fill(~begins, 0).cummax(1).values
        turn = torch.empty_like(best).scatter_(1, by_frame, turn)
        return -(turn + standing.double() / tokens)


@dataclass(frozen=True)
class RandomScorer(Scorer):
    """No opinion: a random order, the floor that every scorer must beat."""

    seed: int = 0
    across_ranks = True

    def score(self, view: LayerView) -> torch.Tensor:
        # One draw a visual token, the same in every layer, so that the choices are nested.
        return _draws(self.seed, max(view.total, 1), view.query.device)[view.ordinal]


@dataclass(frozen=True)
class UniformScorer(Scorer):
    """An even spread over the picture, whatever is in it.

    Multiples of the golden ratio, modulo 1, are spread as evenly as can be for every prefix at
    once, so the tokens above any threshold are too, and thresholds that rise nest.
    """

    across_ranks = True

    def score(self, view: LayerView) -> torch.Tensor:
        return golden_spread(view.ordinal)


@dataclass(frozen=True)
class KeyNormScorer(Scorer):
    """Small keys are important (Devoto et al., EMNLP 2024, arXiv 2406.11430); mean over heads."""

    across_ranks = True

    def score(self, view: LayerView) -> torch.Tensor:
        norms: torch.Tensor = torch.linalg.vector_norm(
            view.key[:, :, -view.visual.shape[1] :].float(), dim=-1
        )
        return -view.merged(norms)


@dataclass(frozen=True)
class ByMethod(Scorer):
    """What a method with a score of its own says.

    Attributes:
        method: a `st3.methods.deciding.Deciding`. `needs`: what it asks for.
    """

    method: Any
    needs: tuple[str, ...] = ()

    @property
    def across_ranks(self) -> bool:
        """As the method says."""
        return bool(self.method.across_ranks)

    def score(self, view: LayerView) -> torch.Tensor:
        found: torch.Tensor = self.method.score(view)
        return found

    def judge(self, view: LayerView) -> tuple[torch.Tensor, Merge | None]:
        found: tuple[torch.Tensor, Merge | None] = self.method.judge(view)
        return found


@dataclass(frozen=True)
class InOrder(Scorer):
    """The order that a selector has made before layer 1: no layer is asked."""

    across_ranks = True

    def score(self, view: LayerView) -> torch.Tensor:
        """Never called.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("this order is made before the decoder, not in a layer")


@lru_cache(maxsize=8)
def _draws(seed: int, count: int, device: torch.device) -> torch.Tensor:
    """Random numbers, float32 [count], made on the CPU so that every device has the same."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.rand(count, generator=generator, pin_memory=device.type == "cuda")
    return table.to(device, non_blocking=True)


def golden_spread(number: torch.Tensor) -> torch.Tensor:
    """Multiples of the golden ratio, modulo 1, float32 of the shape of the integers `number`."""
    return (number.double() * _GOLDEN).frac().float()


SCORERS: dict[str, Scorer] = {
    "last-token": AttentionScorer(),
    "last-token-max": AttentionScorer(heads="max"),
    "last-token-3-layers": AttentionScorer(layers_summed=3),
    "prompt": AttentionScorer(queries="prompt"),
    "prompt-3-layers": AttentionScorer(queries="prompt", layers_summed=3),
    "frames-in-turn": FramesInTurn(),
    "random": RandomScorer(),
    "uniform": UniformScorer(),
    "key-norm": KeyNormScorer(),
}
