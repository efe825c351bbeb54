"""What one generation under trimming did: which visual tokens it kept where, and the bytes cached.

Written by the engine while the generation goes on, read by whoever wants a report. What a `with`
means for its model, the same for all its generations, is its `Plan`.
"""

from __future__ import annotations

import copy
import weakref
from dataclasses import dataclass

import torch

from st3.engine.cache import TrimmedCache
from st3.engine.cache_layer import TrimmedLayer
from st3.engine.prompt import Prompt
from st3.families.parts import Parts
from st3.methods import Method
from st3.methods.schedule import Group, Schedule
from st3.methods.scorers import SCORERS, Scorer


@dataclass(frozen=True)
class Plan:
    """What a method means for a model, and for prompts of some length.

    Attributes:
        method: what was asked for.
        parts: of the model.
        max_new_tokens: what the cache makes room for; None: 64, then more as needed.
        schedule, scorer, groups: follow from them.
    """

    method: Method
    parts: Parts
    max_new_tokens: int | None
    schedule: Schedule
    scorer: Scorer
    groups: tuple[Group, ...]

    @classmethod
    def of(
        cls, method: Method, parts: Parts, max_new_tokens: int | None = None, tokens: int = 0
    ) -> Plan:
        """The plan for prompts of so many tokens: which layers see all of them decides."""
        schedule, seeing = method.schedule(len(parts.layers)), None
        if not parts.plain:
            seeing = parts.seeing(tokens)
            schedule = schedule.fitted(seeing, min(parts.lenders) - 1 if parts.lenders else None)
        scorer, groups = SCORERS[method.scorer], schedule.groups(seeing)
        return cls(method, parts, max_new_tokens, schedule, scorer, groups)

    def for_prompt(self, tokens: int) -> Plan:
        """The same for a prompt of this length."""
        if not self.parts.windows:
            return self
        return Plan.of(self.method, self.parts, self.max_new_tokens, tokens)

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return len(self.parts.layers)


class Record:
    """The record of one trimmed generation; it does not keep its cache alive.

    Args:
        plan: of the `with`.
        prompt: its layout.
        visual: bool [B, n]. `mask`: [B, n] or None, the attention mask.
        cache: what it fills, None without one.

    Attributes:
        generated: tokens generated and fed back so far.
        kv_bytes: bytes of live keys and values after prefill and after each decode step; padding
            of a ragged batch counts.
        untrimmed_kv_bytes: the same had nothing been dropped.
        padding: bool [B, n], False where there is no token; None where all are.
    """

    def __init__(
        self,
        plan: Plan,
        prompt: Prompt,
        visual: torch.Tensor,
        mask: torch.Tensor | None,
        cache: TrimmedCache | None,
    ) -> None:
        self.plan, self.prompt = plan, prompt
        self.generated = 0
        self.kv_bytes: list[int] = []
        self.untrimmed_kv_bytes: list[int] = []
        self.padding = None if mask is None else mask.bool()
        valid = torch.ones_like(visual) if self.padding is None else self.padding
        self._places = visual, valid & ~visual
        self._turned = False
        self._kept: dict[Group, tuple[torch.Tensor, torch.Tensor]] = {}
        self._order: dict[Group, tuple[torch.Tensor, torch.Tensor]] = {}
        self._allocated = 0
        self._cache = _reference(cache)

    def replayed(self, cache: TrimmedCache) -> Record:
        """The record of a generation whose prefill, into `cache`, was a replay of this one's."""
        other = copy.copy(self)
        for name in ("kv_bytes", "untrimmed_kv_bytes", "_kept", "_order"):
            setattr(other, name, copy.copy(getattr(self, name)))
        other._cache = _reference(cache)
        return other

    @property
    def cache(self) -> TrimmedCache | None:
        """The KV cache, while somebody holds it."""
        return None if self._cache is None else self._cache()

    @property
    def allocated_kv_bytes(self) -> int:
        """Bytes of the cache's buffers, or what they were when it was closed."""
        self.settle()
        return self._allocated

    def settle(self) -> None:
        """Note down what will be gone with the cache."""
        if self.cache is not None and self.cache.closed is None:
            self._allocated = self.cache.allocated_bytes

    def kept_per_layer(self, row: int = 0, generated: int = 0) -> list[int]:
        """Visual tokens alive in each layer of one prompt after `generated` tokens."""
        visual, schedule = self.prompt.visual[row], self.plan.schedule
        return [schedule.count(n, visual, generated) for n in range(1, self.plan.layers + 1)]

    def kept(self, layer: int, row: int = 0, generated: int = 0) -> list[int]:
        """Which visual tokens are alive in `layer` (from 1): numbers from 0, in prompt order.

        Several pictures of one prompt are counted through.
        """
        group = self.group(layer)
        visual, ordinal = self._kept[group]
        alive: list[int] = ordinal[row][visual[row]].tolist()
        count = self.plan.schedule.count(layer, self.prompt.visual[row], generated)
        if count < len(alive):
            alive = sorted(self._best(group, row, count).tolist())
        return alive

    def key_places(self, layer: int) -> torch.Tensor:
        """See `TrimSession.key_places`."""
        if self._turned:
            raise ValueError("places of keys are known until a user's next turn, not after it")
        if len(self.prompt.visual) > 1:
            raise ValueError("places of keys are known for one prompt at a time")
        is_visual, is_text = (mask[0] for mask in self._places)
        visual, text = is_visual.nonzero().flatten(), is_text.nonzero().flatten()
        answer = torch.arange(self.generated, device=visual.device) + len(is_visual)
        group = self.group(layer)
        cached = None if self.cache is None else self.cache.layers[layer - 1]
        if self.generated and isinstance(cached, TrimmedLayer) and cached.window is not None:
            places = cached.live_places()
            assert places is not None
            return places[0]
        if self.generated and self.plan.schedule.anneals:  # the cache is sorted
            count = self.plan.schedule.count(layer, len(visual), self.generated)
            return torch.cat((visual[self._best(group, 0, count)], text, answer))
        alive, ordinal = (x[0] for x in self._kept[group])
        if group.first == 1:
            return torch.cat((torch.arange(len(is_visual), device=visual.device), answer))
        prompt = torch.empty_like(ordinal)
        prompt[alive] = visual[ordinal[alive]]
        prompt[~alive] = text
        return torch.cat((prompt, answer))

    def group(self, layer: int) -> Group:
        """The layers that share their tokens with `layer`."""
        return next(group for group in self.plan.groups if group.first <= layer <= group.last)

    def _best(self, group: Group, row: int, count: int) -> torch.Tensor:
        """The `count` most important visual tokens of a group that anneals, least first."""
        ordinal, index = (x[row] for x in self._order[group])
        return ordinal[index[len(index) - count :]]

    def step(self, tokens: int) -> None:
        """A later forward feeds `tokens` tokens: evict what annealing lets go, before it attends.

        One token is a generated one; more are a user's next turn, which is no generation.
        """
        self.generated += tokens == 1
        self._turned |= tokens > 1
        cache, schedule = self.cache, self.plan.schedule
        assert cache is not None
        if schedule.anneals:
            for group in self.plan.groups:
                left = [schedule.count(group.first, n, self.generated) for n in self.prompt.visual]
                for layer in cache.trimmed(group.first, group.last):
                    layer.evict(left)
        for number in self.plan.parts.windows:
            cache.layers[number - 1].expire()
        self.record_bytes(new=tokens)

    def record_kept(self, group: Group, visual: torch.Tensor, ordinal: torch.Tensor) -> None:
        """The group's tokens: which are visual, bool [B, n], and their numbers, int64 [B, n]."""
        self._kept[group] = (visual, ordinal)

    def record_order(self, group: Group, ordinal: torch.Tensor, index: torch.Tensor) -> None:
        """The group's visual tokens, least important first: places `index` [B, v] in `ordinal`."""
        self._order[group] = (ordinal, index)

    def record_bytes(self, new: int = 0) -> None:
        """Note the bytes alive, once `new` tokens a layer will have been added."""
        assert self.cache is not None
        live = untrimmed = 0
        for layer in self.cache.trimmed():
            live += layer.token_bytes * (layer.alive + new)
            stock = layer.seen if layer.window is None else min(layer.seen, layer.window - 1)
            untrimmed += layer.token_bytes * (stock + new)
        self.kv_bytes.append(live)
        self.untrimmed_kv_bytes.append(untrimmed)


def _reference(cache: TrimmedCache | None) -> weakref.ref[TrimmedCache] | None:
    return None if cache is None else weakref.ref(cache)
