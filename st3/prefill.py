"""One prefill under trimming: which tokens are alive, and how they thin out from group to group.

Numbers of tokens come from the schedule, on the host; which tokens they are is decided on the
device, with sorts and gathers and no synchronisation. Rows of a batch may have different numbers of
visual and text tokens: shorter rows then carry invalid tokens on the left, as left padding does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import torch

from st3.cache import Order, to_device
from st3.scoring import LayerView

if TYPE_CHECKING:
    from st3.session import TrimSession


@dataclass(frozen=True)
class Prompt:
    """The shape of a batch of prompts, on the host.

    Attributes:
        tokens: length n of the padded rows.
        visual: visual tokens in each row.
        text: other tokens in each row, padding not counted.
        trailing: tokens behind the last visual token, in the row that has most; at least 1.
    """

    tokens: int
    visual: tuple[int, ...]
    text: tuple[int, ...]
    trailing: int


def layout(visual: torch.Tensor, mask: torch.Tensor | None) -> Prompt:
    """Read the shape of the prompts: the one transfer from the device, before any layer runs.

    Args:
        visual: bool [B, n].
        mask: the attention mask [B, n] that `generate` got, or None.

    Raises:
        ValueError: padding on the right, or a prompt whose last token is visual.
    """
    here = visual.cpu()
    valid = torch.ones_like(here) if mask is None else mask.bool().cpu()
    if not bool(valid[:, -1].all()):
        raise ValueError(
            "the prompts are padded on the right: set processor.tokenizer.padding_side = 'left'"
        )
    if bool(here[:, -1].any()):
        raise ValueError(
            "a prompt ends in a picture: end it in text, whose last token decides what is kept"
        )
    tokens = here.shape[1]
    last = (here * torch.arange(1, tokens + 1)).amax(1).tolist()
    return Prompt(
        tokens=tokens,
        visual=tuple(here.sum(1).tolist()),
        text=tuple((valid & ~here).sum(1).tolist()),
        trailing=max((tokens - end for end in last if end > 0), default=1),
    )


class Prefill:
    """The tokens alive in the current group, from layer to layer.

    Attributes (B rows, n tokens alive, in prompt order):
        visual: bool [B, n].
        ordinal: int64 [B, n], a visual token's number among its row's visual tokens.
        valid: bool [B, n], or None if all are.
    """

    def __init__(
        self, session: TrimSession, prompt: Prompt, visual: torch.Tensor, mask: torch.Tensor | None
    ) -> None:
        self.session = session
        self.prompt = prompt
        self.schedule = session.schedule
        self.scorer = session.scorer
        self.groups = {group.first: group for group in session.groups}
        self.group = session.groups[0]
        self.visual = visual
        self.ordinal = (visual.long().cumsum(1) - 1).clamp_min(0)
        full = all(a + b == prompt.tokens for a, b in zip(prompt.visual, prompt.text, strict=True))
        self.valid = None if mask is None or full else mask.bool()
        self.turns: tuple[torch.Tensor, ...] = ()
        self.recent: dict[int, torch.Tensor] = {}  # layer -> its scores [B, n]
        self.order: Order | None = None
        deciding = session.groups if self.schedule.anneals else session.groups[1:]
        depth = self.scorer.layers_summed
        self.scored = {
            layer
            for group in deciding
            for layer in range(max(1, group.scored_in - depth + 1), group.scored_in + 1)
        }
        self.session.record_kept(self.group, visual, self.ordinal)

    def enter_layer(
        self, layer: int, hidden: torch.Tensor, turns: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Hidden states [B, n, d] and position embeddings for the tokens that `layer` keeps."""
        if layer == 1:
            self.turns = tuple(turn.expand(len(hidden), -1, -1) for turn in turns)
        elif layer in self.groups:
            self.group = self.groups[layer]
            hidden = self._thin(hidden)
        return hidden, self.turns

    def observe(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
    ) -> None:
        """Score if this layer decides something, and put its keys and values into the cache."""
        if layer in self.scored:
            view = LayerView(
                query, key, scaling, self.valid, self.visual, self.ordinal,
                total=max(self.prompt.visual), trailing=self.prompt.trailing,
            )  # fmt: skip
            self.recent[layer] = self.scorer.score(view)
        cache = self.session.cache
        if self.group.first == 1 and layer == self.group.scored_in and self.schedule.anneals:
            self.order = self._sort(self._importance())
            for earlier in cache.layers[: layer - 1] if cache is not None else ():
                earlier.sort(self.order)
        if cache is not None:
            cache.layers[layer - 1].store(
                key,
                value,
                seen=self.prompt.tokens,
                capacity=lru_cache(partial(_most_alive, self.schedule, layer, self.prompt)),
                valid=self.valid,
                order=self.order,
            )
            if layer == self.session.layers:
                self.session.record_bytes()

    def _importance(self) -> torch.Tensor:
        """The score that decides the current group, float32 [B, n]."""
        first = self.group.scored_in - self.scorer.layers_summed
        return torch.stack([s for layer, s in self.recent.items() if layer > first]).sum(0)

    def _thin(self, hidden: torch.Tensor) -> torch.Tensor:
        """Drop what the group that begins here does not keep; returns the kept hidden states."""
        importance = self._importance()
        counts = [self.schedule.count(self.group.first, n) for n in self.prompt.visual]
        best = _most_important_first(importance, self.visual)
        rank = torch.empty_like(best).scatter_(
            1, best, torch.arange(best.shape[1], device=best.device).expand_as(best)
        )
        allowed = to_device(counts, rank.device)[:, None]
        keep = torch.where(self.visual, rank < allowed, True)
        if self.valid is not None:
            keep = keep & self.valid
        width = max(a + b for a, b in zip(counts, self.prompt.text, strict=True))
        index = keep.int().argsort(dim=1, stable=True)[:, keep.shape[1] - width :]
        rows = torch.arange(len(index), device=index.device)[:, None]
        self.valid = None if _even(counts, self.prompt.text) else keep[rows, index]
        self.visual = (self.visual & keep)[rows, index]
        self.ordinal = self.ordinal[rows, index]
        self.turns = tuple(turn[rows, index] for turn in self.turns)
        self.recent = {layer: score[rows, index] for layer, score in self.recent.items()}
        if self.schedule.anneals:
            self.order = self._sort(self._importance())
        self.session.record_kept(self.group, self.visual, self.ordinal)
        return hidden[rows, index]

    def _sort(self, importance: torch.Tensor) -> Order:
        """The layout for annealing: visual tokens first, least important first, then the text."""
        counts = [self.schedule.count(self.group.first, n) for n in self.prompt.visual]
        tokens, width = self.visual.shape[1], max(counts)
        best = _most_important_first(importance, self.visual)
        visual = best[:, :width].flip(1)
        is_text = ~self.visual if self.valid is None else ~self.visual & self.valid
        text = is_text.int().argsort(dim=1, stable=True)[:, tokens - max(self.prompt.text) :]
        valid = None
        if len({*self.prompt.visual}) > 1 or len({*self.prompt.text}) > 1:
            valid = torch.cat((self.visual.gather(1, visual), is_text.gather(1, text)), dim=1)
        self.session.record_order(self.group, self.ordinal.gather(1, visual))
        return Order(torch.cat((visual, text), dim=1), valid, width)


def _most_important_first(importance: torch.Tensor, visual: torch.Tensor) -> torch.Tensor:
    """int64 [B, n]: tokens by falling importance, those that are not visual last."""
    return importance.masked_fill(~visual, float("-inf")).argsort(
        dim=1, descending=True, stable=True
    )


def _even(a: Any, b: Any) -> bool:
    """Whether all rows have equally many tokens, so that nothing is padding."""
    return len({x + y for x, y in zip(a, b, strict=True)}) == 1


def _most_alive(schedule: Any, layer: int, prompt: Prompt, generated: int) -> int:
    """The most tokens alive at once in `layer` until `generated` tokens, in the widest row."""
    visual, text = max(prompt.visual), max(prompt.text)
    if not schedule.anneals:
        return int(schedule.count(layer, visual)) + text + generated
    return max(int(schedule.count(layer, visual, t)) + text + t for t in range(generated + 1))


def attention_mask(
    valid: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor, backend: str
) -> torch.Tensor | None:
    """The mask that `backend` needs, or None where causality alone will do.

    The last query stands at the last key. A token always sees itself, so that no softmax is empty;
    what padding sees reaches nobody.

    Args:
        valid: bool [B, keys] or None.
        query, key: [B, heads, queries or keys, head size].
        backend: the attention implementation.
    """
    queries, keys = query.shape[2], key.shape[2]
    if backend.startswith("flash"):
        return valid
    if valid is None and (queries == 1 or (queries == keys and backend == "sdpa")):
        return None
    place = torch.arange(keys, device=key.device)
    own = place[keys - queries :, None]
    allowed = (place <= own)[None]
    if valid is not None:
        allowed = allowed & (valid[:, None] | (place == own))
    allowed = allowed[:, None]  # [B or 1, 1, queries, keys]
    if backend == "sdpa":
        return allowed
    bias = torch.zeros(allowed.shape, dtype=query.dtype, device=key.device)
    return bias.masked_fill(~allowed, torch.finfo(query.dtype).min)
