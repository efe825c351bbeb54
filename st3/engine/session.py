"""What a `with st3.trim(...)` hands out: its settings, and the records of its generations.

Several threads may generate inside one `with`. Each reads the record of its own last generation; a
thread that has run none, such as one that started others, reads that of the last to begin.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

import torch

from st3.engine.cache import TrimmedCache
from st3.engine.plan import Plan
from st3.engine.record import Record
from st3.methods import Method
from st3.methods.schedule import Group, Schedule

Observer = Callable[[int, torch.Tensor, torch.Tensor, float, torch.Tensor | None], None]


class TrimSession:
    """The settings of a `with st3.trim(...)`, and what its generations did.

    All but the settings raises RuntimeError before anything was generated.

    Attributes:
        plan: what the method means for the model, and short prompts.
        recording_seconds: that compiling and recording have taken so far, warm-up included.
        mark: called before and after each piece of work for choosing and dropping tokens, for
            whoever takes its time.
        observer: called in every layer of every forward with the layer (from 1), queries
            [B, heads, queries, head size], keys [B, key heads, keys, head size], the factor of the
            logits, and bool [B, keys] or None, what is no padding; for whoever wants to look.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.recording_seconds = 0.0
        self.observer: Observer | None = None
        self.mark: Callable[[], None] | None = None
        self._own = threading.local()
        self._last: tuple[Record, TrimmedCache | None] | None = None
        self._records: weakref.WeakKeyDictionary[TrimmedCache, Record] = weakref.WeakKeyDictionary()

    @property
    def method(self) -> Method:
        """What was asked for."""
        return self.plan.method

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return self.plan.layers

    @property
    def schedule(self) -> Schedule:
        """How many visual tokens are alive where and when; the last prompt's, once there is one."""
        return self._plan.schedule

    @property
    def groups(self) -> tuple[Group, ...]:
        """The layers that share a choice of tokens; the last prompt's, once there is one."""
        return self._plan.groups

    @property
    def _plan(self) -> Plan:
        return self.plan if self._last is None else self.record.plan

    @property
    def record(self) -> Record:
        """The calling thread's last generation, or else the last that began."""
        own: Record | None = getattr(self._own, "record", None)
        if own is not None:
            return own
        return self.last

    @property
    def last(self) -> Record:
        """The generation that began last, whoever ran it."""
        if self._last is None:
            raise RuntimeError("nothing has been generated inside this st3.trim yet")
        return self._last[0]

    @property
    def last_cache(self) -> TrimmedCache | None:
        """The cache of the generation that began last, None if there is none."""
        return None if self._last is None else self._last[1]

    @property
    def cache(self) -> TrimmedCache | None:
        """The KV cache, None for a forward without one."""
        return self.record.cache

    @property
    def generated(self) -> int:
        """Tokens generated and fed back so far."""
        return self.record.generated

    @property
    def kv_bytes(self) -> list[int]:
        """Bytes of live keys and values after prefill and after each later forward."""
        return self.record.kv_bytes

    @property
    def untrimmed_kv_bytes(self) -> list[int]:
        """The same had nothing been dropped."""
        return self.record.untrimmed_kv_bytes

    @property
    def allocated_kv_bytes(self) -> int:
        """Bytes of the cache's buffers when the `with` or the generation ended."""
        return self.record.allocated_kv_bytes

    @property
    def visual_tokens(self) -> tuple[int, ...]:
        """Visual tokens of each row of the batch so far, before anything was dropped."""
        return self.record.visual

    @property
    def prompt_tokens(self) -> tuple[int, ...]:
        """All tokens of each first prompt, padding not counted."""
        prompt = self.record.prompt
        return tuple(a + b for a, b in zip(prompt.visual, prompt.text, strict=True))

    def kept_per_layer(self, row: int = 0, generated: int = 0) -> list[int]:
        """Visual tokens alive in each layer of one prompt after `generated` tokens."""
        return self.record.kept_per_layer(row, generated)

    def kept(self, layer: int, row: int = 0, generated: int = 0) -> list[int]:
        """Which visual tokens are alive in `layer` (from 1): numbers from 0, in prompt order.

        Several pictures of one row are counted through, those of later turns as well; so are the
        generated tokens of a conversation.
        """
        return self.record.kept(layer, row, generated)

    def key_places(self, layer: int) -> torch.Tensor:
        """Places in the untrimmed sequence of the keys that `layer` attends to now, int64 [keys].

        In the order in which attention sees them, padding of the prompt included; for an observer.

        Raises:
            ValueError: more than one prompt: rows of a batch have different places; or a next turn
                of the conversation has come.
        """
        return self.record.key_places(layer)

    def begin(self, record: Record, cache: TrimmedCache | None) -> None:
        """A generation begins; whoever holds the cache of an earlier one may go on with that."""
        if self._last is not None:
            self._last[0].settle()
        self._last = record, cache
        self._own.record = record
        if cache is not None:
            self._records[cache] = record

    def retire(self, new: object) -> None:
        """The cache of the last generation gives up its buffers to the next, which fills `new`."""
        cache = self.last_cache
        if cache is not None and cache is not new:
            self.last.settle()
            cache.close(
                "this KV cache is one of an earlier generation, whose buffers a later one took, as "
                "cuda_graphs and compile ask"
            )

    def record_of(self, cache: object) -> Record | None:
        """The generation that fills this cache, if it is one of ours."""
        return self._records.get(cache) if isinstance(cache, TrimmedCache) else None

    def close(self) -> None:
        """Free every cache; what they held stays on record."""
        for cache, record in list(self._records.items()):
            record.settle()
            cache.close("this KV cache belongs to an st3.trim that has ended")
