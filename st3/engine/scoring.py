"""What a scorer is shown in one prefill, and when; visual tokens ranked by what it says.

Layers that decide are scored as they attend, or, where a scorer wants to see what they return, once
they are done. A choice may be the sum over several layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from st3.engine.alive import Alive
from st3.engine.insight import Grids, Insight, blended, cell_table
from st3.engine.masks import MaskRule
from st3.engine.record import Record
from st3.engine.turn import Turn
from st3.methods.scorers import InOrder, LayerView
from st3.methods.view import fixed


class Scoring:
    """The scores of one forward that brings visual tokens.

    Args:
        record: of the generation. `turn`: its turn that begins.

    Attributes:
        ordered: whether an order is known before layer 1 (`by_order`), and no layer is asked.
        layers: those that are scored.
        frames: makes int64 [B, tokens], the frame of each token that the forward brings.
        grids: makes those of each picture.
        again: makes a layer's queries and keys without positions.
        embedded: what layer 1 got, float [B, n, d], and what of it is visual, bool [B, n].
    """

    def __init__(self, record: Record, turn: Turn) -> None:
        self.record, self.turn, self.scorer = record, turn, turn.scorer
        self.ordered = isinstance(self.scorer, InOrder)
        self.frames: Callable[[], torch.Tensor] | None = None
        self.grids: Callable[[], Grids] = tuple
        self.again: Callable[[], tuple[torch.Tensor, torch.Tensor]] | None = None
        self.embedded: tuple[torch.Tensor, torch.Tensor] | None = None
        deciding = turn.groups if turn.schedule.anneals else turn.groups[1:]
        depth = self.scorer.layers_summed
        self._first = {g.first: max(1, g.scored_in - depth + 1) for g in deciding}
        if self.ordered:
            self._first = dict.fromkeys(self._first, 0)
        self.layers = {
            layer
            for group in deciding
            for layer in range(self._first[group.first], group.scored_in + 1)
        }
        self._recent: dict[int, torch.Tensor] = {}  # layer -> its scores [B, n]
        self._ranked: tuple[int, torch.Tensor] | None = None  # by the scores up to this layer
        self._waiting: tuple[int, LayerView] | None = None  # a layer that decides, once it is done
        self._of_all: torch.Tensor | None = None

    def go_to(self, device: torch.device) -> None:
        """The next layer lies there."""
        self._recent = {layer: score.to(device) for layer, score in self._recent.items()}
        self._ranked = None

    def frames_of(self, place: torch.Tensor) -> torch.Tensor:
        """int64 [B, n]: of tokens at these places."""
        if self.frames is None:
            raise RuntimeError("nothing tells which frame a visual token belongs to")
        if self._of_all is None:
            self._of_all = self.frames()
        return self._of_all.to(place.device).gather(1, place)

    def begin(self, hidden: torch.Tensor, visual: torch.Tensor) -> None:
        """What layer 1 gets, before anything leaves: hidden states [B, n, d], `visual` [B, n]."""
        if "embeddings" in self.scorer.needs:
            self.embedded = hidden, visual

    def by_order(self, importance: torch.Tensor) -> None:
        """What has been said of every token, [B, n], before layer 1."""
        self._recent, self._ranked = {0: importance}, None

    def forget(self) -> None:
        """No score counts any more."""
        self._recent, self._ranked = {}, None

    def look(
        self,
        layer: int,
        now: Alive,
        alive: tuple[int, ...],
        query: torch.Tensor,
        key: torch.Tensor,
        scaling: float,
        rule: MaskRule | None,
        softcap: float | None,
        valid: torch.Tensor | None,
        places: torch.Tensor | None,
    ) -> None:
        """Score a layer, if it is one of `layers`.

        Args:
            now: the tokens alive. `alive`: how many of each row are visual.
            query, key, scaling, rule, softcap, valid, places: as for `Prefill.observe`.
        """
        if layer not in self.layers:
            return
        prompt, plan = self.turn.prompt, self.record.plan
        cut, counts = self._left_by(layer)
        allowed = None
        if rule is not None and not rule.plain:
            assert places is not None
            allowed = partial(_seen, rule, places)
        view = LayerView(
            query, key, scaling, valid, now.visual, now.ordinal,
            total=max(prompt.visual), trailing=prompt.trailing, allowed=allowed, softcap=softcap,
            frames=partial(self.frames_of, now.place), across=plan.ranks, before=alive,
            counts=counts, cut=cut, seen=self._insight(now, counts),
        )  # fmt: skip
        if "states" in self.scorer.needs:
            self._waiting = layer, view
        else:
            with self.record.choosing():
                self._recent[layer] = self.scorer.score(view)

    def decide(self, hidden: torch.Tensor, *, cuts: bool) -> torch.Tensor:
        """Score by what the layer before returned, if that is waited for.

        Args:
            hidden: float [B, n, d], what it returned.
            cuts: whether tokens leave before the next layer.

        Returns:
            The same, some of them merged.

        Raises:
            ValueError: tokens are to be merged, and the cut comes later.
        """
        if self._waiting is None:
            return hidden
        layer, view = self._waiting
        self._waiting = None
        with self.record.choosing():
            assert isinstance(view.seen, Insight)
            there, here = view.visual.device, hidden.device
            view = replace(view, seen=replace(view.seen, returned=hidden.to(there)))
            score, merge = self.scorer.judge(view)
            self._recent[layer] = score.to(here)
            if merge is None:
                return hidden
            if not cuts:
                raise ValueError(
                    f"the scorer merges tokens by what layer {layer} says, and in this model they "
                    "leave later: let it merge none"
                )
            self.record.blended = True
            return blended(hidden, merge)

    def ranking(self, now: Alive) -> torch.Tensor:
        """int64 [B, n]: visual tokens by falling importance, padding, then text in prompt order.

        Importance is the score that decides the group whose layers come next.
        """
        last = max(self._recent)
        if self._ranked is None or self._ranked[0] != last:
            first = last - self.scorer.layers_summed
            scores = [score for layer, score in self._recent.items() if layer > first]
            importance = scores[0] if len(scores) == 1 else torch.stack(scores).sum(0)
            key = importance.masked_fill(~now.visual, float("-inf"))
            if now.valid is not None:
                key = key.masked_fill(~now.valid, torch.finfo(key.dtype).min)
            self._ranked = last, key.argsort(dim=1, descending=True, stable=True)
        return self._ranked[1]

    def take(self, index: torch.Tensor, first: int) -> None:
        """A group of layers begins with `first`, and with tokens `index` [B, m] of those alive."""
        later = [at for group, at in self._first.items() if group > first]
        needed = min(later, default=self.record.plan.layers)
        self._recent = {
            layer: score.gather(1, index)
            for layer, score in self._recent.items()
            if layer >= needed
        }
        self._ranked = None

    def _insight(self, now: Alive, counts: tuple[int, ...]) -> Insight | None:
        """What the scorer needs of this layer, which leaves so many visual tokens in each row."""
        if not self.scorer.needs:
            return None
        pictures, device = self.turn.prompt.pictures, now.place.device
        if counts:  # a recording reads them at their address
            self.turn.held.append(fixed(counts, device))
        return Insight(
            self.record.plan.parts, now.place, now.ordinal, self.embedded, self.again,
            table=lambda: cell_table(pictures, self.grids(), device),
        )  # fmt: skip

    def _left_by(self, layer: int) -> tuple[int, tuple[int, ...]]:
        """The first cut that this layer decides, from 1, and what it leaves in each row."""
        cuts = [group for group in self.turn.groups if group.first > 1]
        for number, group in enumerate(cuts, 1):
            if group.scored_in == layer:
                return number, self.turn.left(group)
        return 1, ()


def _seen(rule: MaskRule, places: torch.Tensor, rows: int) -> torch.Tensor:
    """bool [B, 1, rows, n]: what the last rows see of the tokens at `places` [B, n]."""
    return rule.allowed(places[:, -rows:], places)
