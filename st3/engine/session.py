"""What one `with st3.trim(...)` did: which visual tokens were kept where, and the bytes cached.

The session is written by the hooks and read by whoever wants a report. It holds the last
generation; a new prefill inside the same `with` starts it afresh.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

from st3.engine.cache import TrimmedCache
from st3.engine.prompt import Prompt
from st3.methods import Method
from st3.methods.schedule import Group
from st3.methods.scorers import SCORERS

_NOTED = ("kv_bytes", "untrimmed_kv_bytes", "_kept", "_order")
Observer = Callable[[int, torch.Tensor, torch.Tensor, float, torch.Tensor | None], None]


class TrimSession:
    """The record of a trimmed generation.

    Attributes:
        method: what was asked for.
        layers: number of decoder layers.
        max_new_tokens: what the cache makes room for; None: 64, then more as needed.
        schedule, scorer, groups: what the method means for this model.
        cache: the KV cache, None before the first prefill.
        generated: tokens generated and fed back so far.
        kv_bytes: bytes of live keys and values after prefill and after each decode step; padding
            of a ragged batch counts.
        untrimmed_kv_bytes: the same had nothing been dropped.
        allocated_kv_bytes: bytes of the cache's buffers when the `with` or the generation ended.
        recording_seconds: that compiling and recording have taken so far, warm-up included.
        observer: called in every layer of every forward with the layer (from 1), queries
            [B, heads, queries, head size], keys [B, key heads, keys, head size], the factor of the
            logits, and bool [B, keys] or None, what is no padding; for whoever wants to look.
    """

    def __init__(self, method: Method, layers: int, max_new_tokens: int | None = None) -> None:
        self.method = method
        self.max_new_tokens = max_new_tokens
        self.layers = layers
        self.schedule = method.schedule(layers)
        self.scorer = SCORERS[method.scorer]
        self.groups = self.schedule.groups()
        self.cache: TrimmedCache | None = None
        self.generated = 0
        self.kv_bytes: list[int] = []
        self.untrimmed_kv_bytes: list[int] = []
        self.allocated_kv_bytes = 0
        self.recording_seconds = 0.0
        self.observer: Observer | None = None
        self._prompt: Prompt | None = None
        self._turned = False
        self._kept: dict[Group, tuple[torch.Tensor, torch.Tensor]] = {}
        self._order: dict[Group, tuple[torch.Tensor, torch.Tensor]] = {}
        self._places: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def visual_tokens(self) -> tuple[int, ...]:
        """Visual tokens of each prompt of the batch before anything was dropped."""
        return self._started().visual

    @property
    def prompt_tokens(self) -> tuple[int, ...]:
        """All tokens of each prompt, padding not counted."""
        prompt = self._started()
        return tuple(a + b for a, b in zip(prompt.visual, prompt.text, strict=True))

    def kept_per_layer(self, row: int = 0, generated: int = 0) -> list[int]:
        """Visual tokens alive in each layer of one prompt after `generated` tokens."""
        visual = self.visual_tokens[row]
        return [self.schedule.count(n, visual, generated) for n in range(1, self.layers + 1)]

    def kept(self, layer: int, row: int = 0, generated: int = 0) -> list[int]:
        """Which visual tokens are alive in `layer` (from 1): numbers from 0, in prompt order.

        Several pictures of one prompt are counted through.
        """
        self._started()
        group = next(g for g in self.groups if g.first <= layer <= g.last)
        visual, ordinal = self._kept[group]
        alive: list[int] = ordinal[row][visual[row]].tolist()
        count = self.schedule.count(layer, self.visual_tokens[row], generated)
        if count < len(alive):
            alive = sorted(self._best(group, row, count).tolist())
        return alive

    def key_places(self, layer: int) -> torch.Tensor:
        """Places in the untrimmed sequence of the keys that `layer` attends to now, int64 [keys].

        In the order in which attention sees them, padding of the prompt included; for an observer.

        Raises:
            ValueError: more than one prompt: rows of a batch have different places; or a next turn
                of the conversation has come.
        """
        if self._turned:
            raise ValueError("places of keys are known until a user's next turn, not after it")
        if len(self.visual_tokens) > 1:
            raise ValueError("places of keys are known for one prompt at a time")
        assert self._places is not None
        is_visual, is_text = (mask[0] for mask in self._places)
        visual, text = is_visual.nonzero().flatten(), is_text.nonzero().flatten()
        answer = torch.arange(self.generated, device=visual.device) + len(is_visual)
        group = next(g for g in self.groups if g.first <= layer <= g.last)
        if self.generated and self.schedule.anneals:  # the cache is sorted
            count = self.schedule.count(layer, len(visual), self.generated)
            return torch.cat((visual[self._best(group, 0, count)], text, answer))
        alive, ordinal = (x[0] for x in self._kept[group])
        if group.first == 1:
            return torch.cat((torch.arange(len(is_visual), device=visual.device), answer))
        prompt = torch.empty_like(ordinal)
        prompt[alive] = visual[ordinal[alive]]
        prompt[~alive] = text
        return torch.cat((prompt, answer))

    def _best(self, group: Group, row: int, count: int) -> torch.Tensor:
        """The `count` most important visual tokens of a group that anneals, least first."""
        ordinal, index = (x[row] for x in self._order[group])
        return ordinal[index[len(index) - count :]]

    def _started(self) -> Prompt:
        if self._prompt is None:
            raise RuntimeError("nothing has been generated inside this st3.trim yet")
        return self._prompt

    def start(
        self,
        prompt: Prompt,
        cache: TrimmedCache | None,
        visual: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> None:
        """A prefill begins; `visual` bool [B, n] and `mask` [B, n] are the prompt's."""
        valid = torch.ones_like(visual) if mask is None else mask.bool()
        self._places = (visual, valid & ~visual)
        if self.cache is not cache:
            self.close()
        self._prompt, self.cache, self.generated = prompt, cache, 0
        self._turned = False
        self.kv_bytes, self.untrimmed_kv_bytes = [], []
        self._kept, self._order = {}, {}

    def snapshot(self) -> dict[str, Any]:
        """All that a prefill noted down, for `restore`."""
        copied = {name: copy.copy(getattr(self, name)) for name in _NOTED}
        return copied | {"_prompt": self._prompt, "_places": self._places}

    def restore(self, noted: dict[str, Any], cache: TrimmedCache) -> None:
        """A prefill was replayed into `cache`: note down what it noted when it was recorded."""
        if self.cache is not cache:
            self.close()
        self.cache, self.generated, self._turned = cache, 0, False
        for name, value in noted.items():
            setattr(self, name, copy.copy(value))

    def close(self) -> None:
        """Free the cache; what it held stays on record."""
        if self.cache is not None:
            self.allocated_kv_bytes = self.cache.allocated_bytes
            self.cache.close()

    def step(self, tokens: int) -> None:
        """A later forward feeds `tokens` tokens: evict what annealing lets go, before it attends.

        One token is a generated one; more are a user's next turn, which is no generation.
        """
        self.generated += tokens == 1
        self._turned |= tokens > 1
        assert self.cache is not None
        visual = self.visual_tokens
        if self.schedule.anneals:
            for group in self.groups:
                left = [self.schedule.count(group.first, n, self.generated) for n in visual]
                for layer in self.cache.layers[group.first - 1 : group.last]:
                    layer.evict(left)
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
        layer = self.cache.layers[0]
        batch, heads, _, size = layer.keys.shape
        element = layer.keys.element_size() + layer.values.element_size()
        token = batch * heads * size * element
        self.kv_bytes.append(token * sum(n + new for n in self.cache.live_tokens))
        self.untrimmed_kv_bytes.append(token * self.layers * (layer.seen + new))
