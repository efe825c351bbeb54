"""The visual tokens that came into a conversation in one forward: where they are kept, until when.

A generation has one such turn, its prompt. Where pictures come with a later message as well, each
turn is scored, cut and annealed by itself; its clock starts with it (ours: the paper asks once).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from st3.engine.prompt import Prompt
from st3.methods.budget import ALL
from st3.methods.schedule import Group, Schedule
from st3.methods.scorers import Scorer

NEVER = sys.maxsize


@dataclass
class Turn:
    """One of them.

    Attributes:
        schedule, scorer, groups: how it is trimmed, once it has entered the decoder.
        prompt: its layout.
        begun: tokens generated before it. `base`: all tokens before it, padding included.
        first: visual tokens of each row before it.
        entering: visual tokens of each row that enter layer 1, of those that the prompt brought; at
            most so many, until a selector has chosen that decides that itself.
        merges: see `merged`. `features`: layer -> those that a decoder adds behind it, float
            [B, n, d], where they were merged as well. `held`: what a recording of its prefill reads
            at its address.
    """

    schedule: Schedule
    scorer: Scorer
    groups: tuple[Group, ...]
    prompt: Prompt
    begun: int = 0
    base: int = 0
    first: tuple[int, ...] = ()
    entering: tuple[int, ...] = ()
    merges: list[torch.Tensor] = field(default_factory=list)
    features: dict[int, torch.Tensor] = field(default_factory=dict)
    held: list[Any] = field(default_factory=list)
    _standing: list[torch.Tensor] = field(default_factory=list)
    _kept: dict[Group, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    _order: dict[Group, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, schedule: Schedule, scorer: Scorer, groups: tuple[Group, ...], prompt: Prompt,
        **where: Any,
    ) -> Turn:  # fmt: skip
        """The turn that a prompt begins; `where` is what else is known of it."""
        entering = prompt.visual
        if schedule.entering != ALL:
            entering = tuple(sum(schedule.entering.of_pictures(row)) for row in prompt.parts)
        return cls(schedule.inside, scorer, groups, prompt, entering=entering, **where)

    def whole(self, layer: int) -> bool:
        """Whether a layer gets all that the prompt brought."""
        return self.group(layer).first == 1 and self.entering == self.prompt.visual

    def copied(self) -> Turn:
        """The same, with a record of its own."""
        return replace(self, _kept={**self._kept}, _order={**self._order})

    def of_rows(self, rows: Sequence[int]) -> Turn:
        """The same of some rows alone, in this order."""

        def some(pair: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
            return pair[0][rows], pair[1][rows]

        return replace(
            self,
            prompt=self.prompt.of_rows(rows),
            first=tuple(self.first[row] for row in rows) if self.first else (),
            entering=tuple(self.entering[row] for row in rows),
            merges=[merged[rows] for merged in self.merges],
            features={layer: merged[rows] for layer, merged in self.features.items()},
            _standing=[standing[rows] for standing in self._standing],
            _kept={group: some(pair) for group, pair in self._kept.items()},
            _order={group: some(pair) for group, pair in self._order.items()},
        )

    def group(self, layer: int) -> Group:
        """The layers that share their tokens with `layer` (from 1)."""
        return next(group for group in self.groups if group.first <= layer <= group.last)

    def left(self, group: Group) -> tuple[int, ...]:
        """Visual tokens of each row that a group keeps at prefill."""
        return tuple(self.schedule.count(group.first, n) for n in self.entering)

    def count(self, layer: int, row: int, generated: int) -> int:
        """Visual tokens of it alive in `layer` of one row, after `generated` tokens in all."""
        if generated < self.begun:
            return 0
        return self.schedule.count(layer, self.entering[row], generated - self.begun)

    def alive(self, layer: int, row: int, generated: int) -> list[int]:
        """Which ones, in prompt order: numbers from 0 through the row's visual tokens."""
        if generated < self.begun:
            return []
        group = self.group(layer)
        visual, ordinal = self._kept[group]
        found: list[int] = ordinal[row][visual[row]].tolist()
        count = self.count(layer, row, generated)
        if count < len(found):
            found = sorted(self.best(layer, row, count).tolist())
        return [number + self.first[row] for number in found] if self.first else found

    def best(self, layer: int, row: int, count: int) -> torch.Tensor:
        """The `count` most important ones where it anneals, least first: int64 [count], from 0."""
        ordinal, index = (x[row] for x in self._order[self.group(layer)])
        return ordinal[index[len(index) - count :]]

    def leaving(self, layer: int, row: int, generated: int) -> list[int]:
        """For each alive, soonest first: after how many tokens, in all, it will be gone."""
        left = self.count(layer, row, generated)
        found: list[int] = []
        last = self.begun + (self.schedule.tau or 0) if self.schedule.anneals else generated
        for t in range(generated + 1, last + 1):
            now = self.count(layer, row, t)
            found += [t] * (left - now)
            left = now
        return found + [NEVER] * left

    def entered(self, row: int) -> list[int]:
        """Which visual tokens a selector let into layer 1, the most important first, from 0.

        Raises:
            RuntimeError: there was none.
        """
        if not self._standing:
            raise RuntimeError("nothing was chosen before the decoder")
        best = self._standing[0][row, : self.prompt.visual[row]].argsort(
            descending=True, stable=True
        )
        found: list[int] = best[: self.entering[row]].tolist()
        return found

    @property
    def merged(self) -> torch.Tensor | None:
        """Embeddings [B, n, d] into which a selector merged others; None where none did."""
        return self.merges[0] if self.merges else None

    def record_standing(self, standing: torch.Tensor) -> None:
        """What a selector says of every visual token, float [B, N], those that enter first."""
        self._standing[:] = [standing]

    def kept_places(self, layer: int, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Of those alive in `layer` at prefill: which are visual, bool [n], and their numbers."""
        visual, ordinal = self._kept[self.group(layer)]
        return visual[row], ordinal[row]

    def record_kept(self, group: Group, visual: torch.Tensor, ordinal: torch.Tensor) -> None:
        """The group's tokens: which are visual, bool [B, n], and their numbers, int64 [B, n]."""
        self._kept[group] = (visual, ordinal)

    def record_order(self, group: Group, ordinal: torch.Tensor, index: torch.Tensor) -> None:
        """The group's visual tokens, least important first: places `index` [B, v] in `ordinal`."""
        self._order[group] = (ordinal, index)
