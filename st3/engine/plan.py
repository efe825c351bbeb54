"""What a method means for a model: the same for all generations of a `with`."""

from __future__ import annotations

from dataclasses import dataclass

from st3.engine.ranks import HeadRanks
from st3.families.parts import Parts
from st3.methods import Method
from st3.methods.base import Selector
from st3.methods.schedule import Group, Schedule
from st3.methods.scorers import InOrder, Scorer


@dataclass(frozen=True)
class Plan:
    """What a method means for a model, and for prompts of some length.

    Attributes:
        method: what was asked for.
        parts: of the model.
        max_new_tokens: what the cache makes room for; None: 64, then more as needed.
        schedule, scorer, groups: follow from them; the schedule's counts are of tokens before the
            decoder. `selector`: what chooses there, or orders what enters; None if nothing does.
        ranks: that hold other heads of the model, None where it is whole.
    """

    method: Method
    parts: Parts
    max_new_tokens: int | None
    schedule: Schedule
    scorer: Scorer
    groups: tuple[Group, ...]
    ranks: HeadRanks | None = None
    selector: Selector | None = None

    @classmethod
    def of(
        cls, method: Method, parts: Parts, max_new_tokens: int | None = None, tokens: int = 0,
        ranks: HeadRanks | None = None,
    ) -> Plan:  # fmt: skip
        """The plan for prompts of so many tokens: which layers see all of them decides."""
        schedule, seeing = method.schedule(len(parts.layers)), None
        selector, scorer = method.selector, method.ranks_by()
        ordered = isinstance(scorer, InOrder)
        if not parts.plain:
            seeing = () if ordered else parts.seeing(tokens)
            schedule = schedule.fitted(seeing, min(parts.lenders) - 1 if parts.lenders else None)
        if schedule.anneals and "states" in scorer.needs:
            raise ValueError(
                f"{method.name} decides by what a layer returns, when its keys are in the cache in "
                "an order: nothing can leave it while decoding (leave tau out)"
            )
        groups = schedule.groups(seeing, ordered=ordered)
        return cls(method, parts, max_new_tokens, schedule, scorer, groups, ranks, selector)

    def for_prompt(self, tokens: int) -> Plan:
        """The same for a prompt of this length."""
        if not self.parts.windows:
            return self
        return Plan.of(self.method, self.parts, self.max_new_tokens, tokens, self.ranks)

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return len(self.parts.layers)
