"""One forward that brings visual tokens: which are alive, and how they thin out group by group.

Before layer 1 a selector may thin them out as well (`st3.engine.entrance`).

It is a prefill, or a later turn of a conversation: its tokens then thin out among themselves, and
attend to those that the cache holds as well.

Numbers of tokens come from the schedule, on the host; which tokens they are is decided on the
device, with sorts and gathers and no synchronisation. Rows of a batch may have different numbers of
visual and text tokens: shorter rows then carry invalid tokens on the left, as left padding does.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import torch

from st3.engine.alive import Alive
from st3.engine.cache import TrimmedCache
from st3.engine.entrance import Entrance
from st3.engine.filling import Filling, most_alive
from st3.engine.follow import Features, Followers
from st3.engine.masks import MaskRule
from st3.engine.order import Order, to_device
from st3.engine.record import Record
from st3.engine.scoring import Scoring
from st3.engine.turn import Turn
from st3.methods.schedule import Group


class Prefill:
    """The tokens alive in the current group, from layer to layer.

    Args:
        record: of the generation. `turn`: its turn that begins, written here.
        visual: bool [B, n]. `mask`: [B, n] or None, the attention mask.
        cache: to be filled, None without one.

    Attributes:
        now: the tokens alive. `group`: of the layers that keep them.
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
        self.schedule, self.scoring = turn.schedule, Scoring(record, turn)
        self.groups = {group.first: group for group in turn.groups}
        self.entrance: Entrance | None = None
        if self.plan.selector is not None and max(prompt.visual):
            self.entrance = Entrance(self.plan.selector, self.plan.schedule.entering, prompt)
        self.enter_group(turn.groups[0])
        self.now = Alive.of(prompt, visual, mask)
        self.followers = Followers(prompt.tokens)
        self.features: Features | None = None
        self.lent: dict[int, torch.Tensor] = {}  # layer -> places of its keys
        self.unseen = {*self.plan.parts.keyed, *self.plan.parts.lenders}
        self.order: Order | None = None
        self.filling = None if cache is None else Filling(record, turn, cache)
        self.turn.record_kept(self.group, visual, self.now.ordinal)
        self._visual = prompt.visual  # tokens alive in each row
        self._alive = [(1, self.now)]

    def alive(self, layer: int | None = None) -> Alive:
        """The tokens alive in a layer entered before; without one, in the last of these."""
        return [alive for first, alive in self._alive if layer is None or first <= layer][-1]

    def go_to(self, device: torch.device) -> None:
        """Layers may lie on several devices: what is known of the tokens alive goes along."""
        if self.now.place.device == device:
            return
        self.now = self.now.to(device)
        self.scoring.go_to(device)
        self.order = None if self.order is None else self.order.to(device)

    def enter_layer(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states [B, n, d] for the tokens that `layer` keeps."""
        self.go_to(hidden.device)
        if self.features is not None:
            hidden = self.features.add(layer - 1, hidden, self.now.place, self.now.valid)
        if layer == 1:
            self.scoring.begin(hidden, self.now.visual)
        hidden = self.scoring.decide(hidden, cuts=layer in self.groups)
        if layer == 1 and self.entrance is not None:
            with self.record.choosing():
                hidden = self._enter(hidden)
        if layer > 1 and layer in self.groups:
            self.enter_group(self.groups[layer])
            with self.record.choosing():
                hidden = self._thin(hidden, self.turn.left(self.group))
        if self.later and layer in self.plan.parts.keyed:
            assert self.cache is not None
            cached = self.cache.layers[layer - 1]
            cached.expect(self.prompt.tokens, self.now.valid, self.now.place)
        return hidden

    def follow(self, value: Any, behind: int) -> Any:
        """What belongs to the prompt's tokens, for those alive; see `Followers`."""
        return value if self.now.whole else self.followers.gather(value, self.now.place, behind)

    def enter_group(self, group: Group) -> None:
        """The layers to come are of this group, by what is known to enter."""
        self.group = group
        turn, text = self.turn, max(self.prompt.text)
        most = partial(most_alive, turn.schedule, group.first, max(turn.entering), text)
        self.capacity = lru_cache(most)

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
        self.scoring.look(
            layer, self.now, self._visual, query, key, scaling, rule, softcap, valid, places
        )
        first = self.group.first == 1 and self.schedule.anneals
        if first and layer == self.group.scored_in:  # never where a selector's order decides
            listed = self._list(self.turn.entering)
            self._lay_out(listed, listed.clamp_min(0), self.turn.entering)
        if self.filling is None:
            return
        self.filling.wait(layer, rule is not None)
        if first and self.order is None:  # what decides its order comes in a later layer
            return
        self.filling.store(self.order, self.now.place, self.now.valid, self.capacity)
        self.lent[layer] = self.now.place

    def _enter(self, hidden: torch.Tensor) -> torch.Tensor:
        """Layer 0: the hidden states of the tokens that enter layer 1."""
        assert self.entrance is not None
        self.scoring.by_order(self.entrance.importance(self.now.ordinal))
        self.turn.record_standing(self.entrance.standing)
        self.turn.held[:] = [self.entrance.tables()]
        self.record.doubts.append(self.entrance.doubt)
        self.record.perhaps += self.entrance.perhaps
        if hidden.device.type == "cpu":  # elsewhere the host would wait: the next step asks
            self.record.check_choices()
        if self.turn.entering != self.prompt.visual:
            hidden = self._thin(hidden, self.turn.entering)
        elif self.scoring.ordered and self.schedule.anneals:
            listed = self._list(self.prompt.visual)
            self._lay_out(listed, listed.clamp_min(0), self.prompt.visual)
        if not self.scoring.ordered:
            self.scoring.forget()
        return hidden

    def _list(self, counts: tuple[int, ...]) -> torch.Tensor:
        """int64 [B, m]: places of the best visual tokens, least important first, then of the text.

        Rows with fewer tokens than others hold -1 in front of either part.
        """
        text, width = self.prompt.text, max(counts)
        ranking = self.scoring.ranking(self.now)
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
        text = self.prompt.text
        alive = max(a + b for a, b in zip(counts, text, strict=True))
        listed = self._list(counts)
        # Back to prompt order, places that hold nothing first; `column`: where each was listed.
        index, column = listed.sort(dim=1)
        spare = listed.shape[1] - alive
        index, column = index[:, spare:], column[:, spare:]
        visual, valid = column < max(counts), None
        if not _even(counts, text):
            valid = index >= 0
            visual, index = visual & valid, index.clamp_min(0)
        rows = torch.arange(len(index), device=index.device)[:, None]
        self.now = self.now.taken(index, visual, valid)
        self._alive.append((self.group.first, self.now))
        self.followers.forget()
        self.scoring.take(index, self.group.first)
        self._visual = counts
        self.turn.record_kept(self.group, visual, self.now.ordinal)
        if self.schedule.anneals and (self.scoring.ordered or self.group.first > 1):
            places = torch.arange(alive, device=index.device).expand_as(column)
            self._lay_out(listed, torch.zeros_like(listed).scatter_(1, column, places), counts)
        return hidden[rows, index]

    def _lay_out(self, listed: torch.Tensor, index: torch.Tensor, counts: tuple[int, ...]) -> None:
        """The cache's slots from here on: token `index` [B, m] each, nothing where `listed` < 0."""
        # Rows that hold equally many now may differ later.
        uneven = len({*self.turn.entering}) > 1 or len({*self.prompt.text}) > 1
        self.order = Order(index, listed >= 0 if uneven else None, max(counts))
        self.turn.record_order(self.group, self.now.ordinal, index[:, : max(counts)])


def _even(a: Any, b: Any) -> bool:
    """Whether all rows have equally many tokens, so that nothing is padding."""
    return len({x + y for x, y in zip(a, b, strict=True)}) == 1
