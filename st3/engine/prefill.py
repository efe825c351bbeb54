"""One forward that brings visual tokens: which are alive, and how they thin out group by group.

Before layer 1 a selector may thin them out as well (`st3.engine.entrance`).

It is a prefill, or a later turn of a conversation: its tokens then thin out among themselves, and
attend to those that the cache holds as well.

Numbers of tokens come from the schedule, on the host; which tokens they are is decided on the
device, with sorts and gathers and no synchronisation. Rows of a batch may have different numbers of
visual and text tokens: shorter rows then carry invalid tokens on the left, as left padding does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch

from st3.engine.cache import TrimmedCache
from st3.engine.entrance import Entrance
from st3.engine.filling import Filling
from st3.engine.follow import Features, Followers
from st3.engine.insight import Grids, Insight, blended, cell_table
from st3.engine.masks import MaskRule
from st3.engine.order import Order, to_device
from st3.engine.record import Record
from st3.engine.turn import Turn
from st3.methods.schedule import Group
from st3.methods.scorers import InOrder, LayerView
from st3.methods.view import fixed


@dataclass(frozen=True)
class Alive:
    """Which of the prompt's `tokens` are alive in a group of layers.

    Attributes:
        place: int64 [B, m], their places in the prompt; `valid` bool [B, m] or None, which of them
            are tokens.
        whole: whether nothing has been dropped.
    """

    tokens: int
    place: torch.Tensor
    valid: torch.Tensor | None
    whole: bool


class Prefill:
    """The tokens alive in the current group, from layer to layer.

    Args:
        record: of the generation. `turn`: its turn that begins, written here.
        visual: bool [B, n]. `mask`: [B, n] or None, the attention mask.
        cache: to be filled, None without one.

    Attributes (B rows, n tokens alive, in prompt order):
        visual: bool [B, n].
        place: int64 [B, n], in what this forward was given.
        ordinal: int64 [B, n], a visual token's number among its row's visual tokens.
        valid: bool [B, n], or None if all are.
        unseen: layers that have not called attention yet.
    """

    def __init__(
        self,
        record: Record,
        turn: Turn,
        visual: torch.Tensor,
        mask: torch.Tensor | None,
        cache: TrimmedCache | None,
    ) -> None:
        self.record, self.cache, self.plan = record, cache, record.plan
        self.turn, self.later = turn, turn.base > 0
        self.prompt = prompt = turn.prompt
        self.schedule, self.scorer, groups = turn.schedule, turn.scorer, turn.groups
        self.groups = {group.first: group for group in groups}
        self.ordered = isinstance(self.scorer, InOrder)
        self.entrance: Entrance | None = None
        if self.plan.selector is not None and max(prompt.visual):
            self.entrance = Entrance(self.plan.selector, self.plan.schedule.entering, prompt)
        self._enter_group(groups[0])
        self.place = torch.arange(prompt.tokens, device=visual.device).expand(visual.shape)
        self.visual = visual
        self.ordinal = (visual.long().cumsum(1) - 1).clamp_min(0)
        self.valid = None if mask is None or prompt.full else mask.bool()
        self.followers = Followers(prompt.tokens)
        self.features: Features | None = None
        self.frames: Callable[[], torch.Tensor] | None = None  # int64 [B, tokens], see `frames`
        self.grids: Callable[[], Grids] = tuple  # of each picture
        self.again: Callable[[], tuple[torch.Tensor, torch.Tensor]] | None = None
        self.embedded: tuple[torch.Tensor, torch.Tensor] | None = None
        self._now = prompt.visual  # visual tokens alive in each row
        self._waiting: tuple[int, LayerView] | None = None  # a layer that decides, once it is done
        self._of_all: torch.Tensor | None = None
        self.lent: dict[int, torch.Tensor] = {}  # layer -> places of its keys
        self.unseen = {*self.plan.parts.keyed, *self.plan.parts.lenders}
        self.recent: dict[int, torch.Tensor] = {}  # layer -> its scores [B, n]
        self.ranked: tuple[int, torch.Tensor] | None = None  # by the scores up to this layer
        self.order: Order | None = None
        self.filling = None if cache is None else Filling(record, turn, cache)
        deciding = groups if self.schedule.anneals else groups[1:]
        depth = self.scorer.layers_summed
        self.first_scored = {g.first: max(1, g.scored_in - depth + 1) for g in deciding}
        if self.ordered:
            self.first_scored = dict.fromkeys(self.first_scored, 0)
        self.scored = {
            layer
            for group in deciding
            for layer in range(self.first_scored[group.first], group.scored_in + 1)
        }
        self.turn.record_kept(self.group, visual, self.ordinal)
        self._alive = [(1, Alive(prompt.tokens, self.place, None, whole=True))]

    def alive(self, layer: int | None = None) -> Alive:
        """The tokens alive in a layer entered before; without one, in the last of these."""
        return [alive for first, alive in self._alive if layer is None or first <= layer][-1]

    def go_to(self, device: torch.device) -> None:
        """Layers may lie on several devices: what is known of the tokens alive goes along."""
        if self.place.device == device:
            return
        self.place, self.visual = self.place.to(device), self.visual.to(device)
        self.ordinal = self.ordinal.to(device)
        self.valid = None if self.valid is None else self.valid.to(device)
        self.recent = {layer: score.to(device) for layer, score in self.recent.items()}
        self.ranked = None
        self.order = None if self.order is None else self.order.to(device)

    def enter_layer(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states [B, n, d] for the tokens that `layer` keeps."""
        self.go_to(hidden.device)
        if self.features is not None:
            hidden = self.features.add(layer - 1, hidden, self.place, self.valid)
        if layer == 1 and "embeddings" in self.scorer.needs:
            self.embedded = hidden, self.visual
        if self._waiting is not None:
            with self.record.choosing():
                hidden = self._decide(*self._waiting, layer, hidden)
        if layer == 1 and self.entrance is not None:
            with self.record.choosing():
                hidden = self._enter(hidden)
        if layer > 1 and layer in self.groups:
            self._enter_group(self.groups[layer])
            with self.record.choosing():
                hidden = self._thin(hidden, self._counts())
        if self.later and layer in self.plan.parts.keyed:
            assert self.cache is not None
            self.cache.layers[layer - 1].expect(self.prompt.tokens, self.valid, self.place)
        return hidden

    def follow(self, value: Any, behind: int) -> Any:
        """What belongs to the prompt's tokens, for those alive; see `Followers`."""
        whole = self.alive().whole
        return value if whole else self.followers.gather(value, self.place, behind)

    def _frames(self) -> torch.Tensor:
        """int64 [B, n]: of the tokens alive."""
        if self.frames is None:
            raise RuntimeError("nothing tells which frame a visual token belongs to")
        if self._of_all is None:
            self._of_all = self.frames()
        return self._of_all.to(self.place.device).gather(1, self.place)

    def _enter_group(self, group: Group) -> None:
        self.group = group
        turn = self.turn
        text = max(self.prompt.text)
        most = partial(most_alive, turn.schedule, group.first, max(turn.entering), text)
        self.capacity = lru_cache(most)

    def _counts(self) -> tuple[int, ...]:
        """Visual tokens of each row that the group keeps at prefill."""
        return tuple(self.schedule.count(self.group.first, n) for n in self.turn.entering)

    def bring(self, hidden: torch.Tensor) -> torch.Tensor:
        """The prompt's embeddings [B, n, d] as the decoder gets them.

        A selector, if there is one, chooses among them here, before the decoder does anything with
        them: what it merges is merged in all that the decoder makes of embeddings.
        """
        if self.entrance is None:
            return hidden
        with self.record.choosing():
            seen = hidden
            if self.features is not None:  # some decoders add all that a picture is
                seen = self.features.add(0, hidden, self.place, self.valid)
            self.entrance.choose(seen, self.visual, self.valid, self._frames, self.record.notes)
            if self.entrance.adaptive:
                self.turn.entering = self.entrance.entering
                self._enter_group(self.group)
            merging = self.entrance.merging
            if merging is None:
                return hidden
            hidden = merging(hidden)
            self.turn.merges[:] = [hidden]
            if self.features is not None:
                self.turn.features.update(self.features.merge(merging))
        return hidden

    def enters(self) -> torch.Tensor:
        """bool [B, n]: the tokens of the prompt that will enter layer 1."""
        assert self.entrance is not None
        stays = (self.entrance.importance(self.ordinal) > 1) | ~self.visual
        return stays if self.valid is None else stays & self.valid

    def _enter(self, hidden: torch.Tensor) -> torch.Tensor:
        """Layer 0: the hidden states of the tokens that enter layer 1."""
        assert self.entrance is not None
        self.recent = {0: self.entrance.importance(self.ordinal)}
        self.turn.record_standing(self.entrance.standing)
        self.turn.held[:] = [self.entrance.tables()]
        self.record.doubts.append(self.entrance.doubt)
        if hidden.device.type == "cpu":  # elsewhere the host would wait: the next step asks
            self.record.check_choices()
        if self.turn.entering != self.prompt.visual:
            hidden = self._thin(hidden, self.turn.entering)
        elif self.ordered and self.schedule.anneals:
            listed = self._list(self.prompt.visual)
            self._lay_out(listed, listed.clamp_min(0), self.prompt.visual)
        if not self.ordered:
            self.recent, self.ranked = {}, None
        return hidden

    def observe(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        scaling: float,
        rule: MaskRule | None,
        softcap: float | None,
        valid: torch.Tensor | None,
        places: torch.Tensor | None,
    ) -> None:
        """Score if this layer decides something, and put its keys and values into the cache.

        `key` [B, key heads, k, head size], `valid` [B, k] and `places` [B, k] are those of all that
        the layer sees, this forward's n tokens last.
        """
        if layer in self.scored:
            cut, counts = self._left_by(layer)
            allowed = None
            if rule is not None and not rule.plain:
                assert places is not None
                allowed = partial(_seen, rule, places)
            view = LayerView(
                query, key, scaling, valid, self.visual, self.ordinal,
                total=max(self.prompt.visual), trailing=self.prompt.trailing,
                allowed=allowed, softcap=softcap, frames=self._frames, across=self.plan.ranks,
                before=self._now, counts=counts, cut=cut, seen=self._insight(counts),
            )  # fmt: skip
            if "states" in self.scorer.needs:
                self._waiting = layer, view
            else:
                with self.record.choosing():
                    self.recent[layer] = self.scorer.score(view)
        first = self.group.first == 1 and self.schedule.anneals
        if first and layer == self.group.scored_in:  # never where a selector's order decides
            listed = self._list(self.turn.entering)
            self._lay_out(listed, listed.clamp_min(0), self.turn.entering)
        if self.filling is None:
            return
        self.filling.wait(layer, rule is not None)
        if first and self.order is None:  # what decides its order comes in a later layer
            return
        self.filling.store(self.order, self.place, self.valid, self.capacity)
        self.lent[layer] = self.place

    def _insight(self, counts: tuple[int, ...]) -> Insight | None:
        """What the scorer needs of this layer, which leaves so many visual tokens in each row."""
        if not self.scorer.needs:
            return None
        pictures, device = self.prompt.pictures, self.place.device
        if counts:  # a recording reads them at their address
            self.turn.held.append(fixed(counts, device))
        return Insight(
            self.plan.parts, self.place, self.ordinal, self.embedded, self.again,
            table=lambda: cell_table(pictures, self.grids(), device),
        )  # fmt: skip

    def _left_by(self, layer: int) -> tuple[int, tuple[int, ...]]:
        """The first cut that this layer decides, from 1, and what it leaves in each row."""
        cuts = sorted(first for first in self.groups if first > 1)
        for number, first in enumerate(cuts, 1):
            if self.groups[first].scored_in == layer:
                return number, tuple(self.schedule.count(first, n) for n in self.turn.entering)
        return 1, ()

    def _decide(
        self, layer: int, view: LayerView, coming: int, hidden: torch.Tensor
    ) -> torch.Tensor:
        """Score by what a layer returned; hidden states [B, n, d], some of them merged.

        Raises:
            ValueError: tokens are to be merged, and the cut comes later.
        """
        self._waiting = None
        assert isinstance(view.seen, Insight)
        there, here = view.visual.device, hidden.device
        view = replace(view, seen=replace(view.seen, returned=hidden.to(there)))
        score, merge = self.scorer.judge(view)
        self.recent[layer] = score.to(here)
        if merge is None:
            return hidden
        if coming not in self.groups:
            raise ValueError(
                f"the scorer merges tokens by what layer {layer} says, and in this model they "
                "leave later: let it merge none"
            )
        self.record.blended = True
        return blended(hidden, merge)

    def _ranking(self) -> torch.Tensor:
        """int64 [B, n]: visual tokens by falling importance, padding, then text in prompt order.

        Importance is the score that decides the group whose layers come next.
        """
        last = max(self.recent)
        if self.ranked is None or self.ranked[0] != last:
            first = last - self.scorer.layers_summed
            scores = [score for layer, score in self.recent.items() if layer > first]
            importance = scores[0] if len(scores) == 1 else torch.stack(scores).sum(0)
            key = importance.masked_fill(~self.visual, float("-inf"))
            if self.valid is not None:
                key = key.masked_fill(~self.valid, torch.finfo(key.dtype).min)
            self.ranked = last, key.argsort(dim=1, descending=True, stable=True)
        return self.ranked[1]

    def _list(self, counts: tuple[int, ...]) -> torch.Tensor:
        """int64 [B, m]: places of the best visual tokens, least important first, then of the text.

        Rows with fewer tokens than others hold -1 in front of either part.
        """
        ranking, text, width = self._ranking(), self.prompt.text, max(counts)
        most = max(text)
        behind = ranking[:, ranking.shape[1] - most :]
        listed = torch.cat((ranking[:, :width].flip(1), behind), dim=1)
        if len({*counts}) == len({*text}) == 1:
            return listed
        column = torch.arange(width + most, device=listed.device)
        begin = to_device([width - n for n in counts], listed.device)[:, None]
        resume = to_device([width + most - n for n in text], listed.device)[:, None]
        nothing = (column < begin) | ((column >= width) & (column < resume))
        return listed.masked_fill(nothing, -1)

    def _thin(self, hidden: torch.Tensor, counts: tuple[int, ...]) -> torch.Tensor:
        """Drop what the group that begins here does not keep; returns the kept hidden states."""
        alive = max(a + b for a, b in zip(counts, self.prompt.text, strict=True))
        listed = self._list(counts)
        # Back to prompt order, places that hold nothing first; `column`: where each was listed.
        index, column = listed.sort(dim=1)
        spare = listed.shape[1] - alive
        index, column = index[:, spare:], column[:, spare:]
        self.visual = column < max(counts)
        self.valid = None
        if not _even(counts, self.prompt.text):
            self.valid = index >= 0
            self.visual = self.visual & self.valid
            index = index.clamp_min(0)
        rows = torch.arange(len(index), device=index.device)[:, None]
        self.place = self.place.gather(1, index)
        self._alive += [
            (self.group.first, Alive(self.prompt.tokens, self.place, self.valid, whole=False))
        ]
        self.ordinal = self.ordinal.gather(1, index)
        self.followers.forget()
        later = [at for first, at in self.first_scored.items() if first > self.group.first]
        needed = min(later, default=self.plan.layers)
        self.recent = {n: score.gather(1, index) for n, score in self.recent.items() if n >= needed}
        self.ranked = None
        self._now = counts
        self.turn.record_kept(self.group, self.visual, self.ordinal)
        if self.schedule.anneals and (self.ordered or self.group.first > 1):
            places = torch.arange(alive, device=index.device).expand_as(column)
            self._lay_out(listed, torch.zeros_like(listed).scatter_(1, column, places), counts)
        return hidden[rows, index]

    def _lay_out(self, listed: torch.Tensor, index: torch.Tensor, counts: tuple[int, ...]) -> None:
        """The cache's slots from here on: token `index` [B, m] each, nothing where `listed` < 0."""
        # Rows that hold equally many now may differ later.
        uneven = len({*self.turn.entering}) > 1 or len({*self.prompt.text}) > 1
        self.order = Order(index, listed >= 0 if uneven else None, max(counts))
        self.turn.record_order(self.group, self.ordinal, index[:, : max(counts)])


def _seen(rule: MaskRule, places: torch.Tensor, rows: int) -> torch.Tensor:
    """bool [B, 1, rows, n]: what the last rows see of the tokens at `places` [B, n]."""
    return rule.allowed(places[:, -rows:], places)


def _even(a: Any, b: Any) -> bool:
    """Whether all rows have equally many tokens, so that nothing is padding."""
    return len({x + y for x, y in zip(a, b, strict=True)}) == 1


def most_alive(schedule: Any, layer: int, visual: int, text: int, generated: int) -> int:
    """The most tokens alive at once in `layer` until `generated` tokens, in the widest row.

    `visual` of them entered layer 1, beside `text` others.
    """
    if not schedule.anneals:
        return int(schedule.count(layer, visual)) + text + generated
    return max(int(schedule.count(layer, visual, t)) + text + t for t in range(generated + 1))
