"""What one generation under trimming did: which visual tokens it kept where, and the bytes cached.

Written by the engine while the generation goes on, read by whoever wants a report.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from st3.engine.cache import TrimmedCache
from st3.engine.cache_layer import TrimmedLayer
from st3.engine.entrance import complain
from st3.engine.plan import Plan
from st3.engine.prompt import Prompt
from st3.engine.turn import Turn


class Record:
    """The record of one trimmed generation; it does not keep its cache alive.

    Args:
        plan: of the `with`, for the prompt.
        prompt: its layout.
        visual: bool [B, n]. `mask`: [B, n] or None, the attention mask.
        cache: what it fills, None without one.

    Attributes:
        turns: forwards that brought visual tokens, the prompt first, whatever it brought.
        generated: tokens generated and fed back so far.
        kv_bytes: bytes of live keys and values after prefill and after each later forward; padding
            of a ragged batch counts. Those of this process, where others hold other heads.
        untrimmed_kv_bytes: the same had nothing been dropped.
        padding: bool [B, n], False where there is no token; None where all are.
        padded: whether any row has been padded so far.
        notes: what a selector did otherwise than it would, or what it did without.
        doubts: bool [] each, on the device, whether a selector's choice cannot be.
        perhaps: notes that hold if what stands beside them, on the device, is true anywhere.
        blended: whether tokens were merged in the decoder.
        mark: see `TrimSession.mark`.
        shift: of each row, by how many positions what follows has moved up, where positions are
            counted without those that did not enter.
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
        self.turns = [Turn.of(plan.schedule, plan.scorer, plan.groups, prompt)]
        self.generated = 0
        self.kv_bytes: list[int] = []
        self.untrimmed_kv_bytes: list[int] = []
        self.padding = None if mask is None else mask.bool()
        self.padded = not prompt.full
        self.notes: list[str] = []
        self.doubts: list[torch.Tensor] = []
        self.perhaps: list[tuple[torch.Tensor, str]] = []
        self.blended = False
        self.mark: Callable[[], None] | None = None
        self.shift = [0] * len(prompt.visual)
        valid = torch.ones_like(visual) if self.padding is None else self.padding
        self._places = visual, valid & ~visual
        self._turned = False
        self._runs = [(group.first, group.last) for group in plan.groups]
        self._allocated = 0
        self._cache = _reference(cache)

    def replayed(self, cache: TrimmedCache) -> Record:
        """The record of a generation whose prefill, into `cache`, was a replay of this one's."""
        other = copy.copy(self)
        for name in ("kv_bytes", "untrimmed_kv_bytes"):
            setattr(other, name, copy.copy(getattr(self, name)))
        for name in ("notes", "doubts", "perhaps"):
            setattr(other, name, [*getattr(self, name)])
        other.turns = [turn.copied() for turn in self.turns]
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

    @property
    def visual(self) -> tuple[int, ...]:
        """Visual tokens of each row so far, before anything was dropped."""
        return tuple(map(sum, zip(*(turn.prompt.visual for turn in self.turns), strict=True)))

    def kept_per_layer(self, row: int = 0, generated: int = 0) -> list[int]:
        """Visual tokens alive in each layer of one prompt after `generated` tokens."""
        layers = range(1, self.plan.layers + 1)
        return [sum(turn.count(n, row, generated) for turn in self.turns) for n in layers]

    def kept(self, layer: int, row: int = 0, generated: int = 0) -> list[int]:
        """Which visual tokens are alive in `layer` (from 1): numbers from 0, in prompt order.

        All pictures of a row are counted through, later turns' as well.
        """
        self.check_choices()
        return [n for turn in self.turns for n in turn.alive(layer, row, generated)]

    def key_places(self, layer: int) -> torch.Tensor:
        """See `TrimSession.key_places`."""
        if self._turned:
            raise ValueError("places of keys are known until a user's next turn, not after it")
        if len(self.prompt.visual) > 1:
            raise ValueError("places of keys are known for one prompt at a time")
        is_visual, is_text = (mask[0] for mask in self._places)
        visual, text = is_visual.nonzero().flatten(), is_text.nonzero().flatten()
        answer = torch.arange(self.generated, device=visual.device) + len(is_visual)
        turn = self.turns[0]
        cached = None if self.cache is None else self.cache.layers[layer - 1]
        if self.generated and isinstance(cached, TrimmedLayer) and cached.window is not None:
            places = cached.live_places()
            assert places is not None
            return places[0].to(visual.device)
        if self.generated and self.plan.schedule.anneals:  # the cache is sorted
            count = turn.count(layer, 0, self.generated)
            best = turn.best(layer, 0, count).to(visual.device)
            return torch.cat((visual[best], text, answer))
        alive, ordinal = (x.to(visual.device) for x in turn.kept_places(layer, 0))
        if turn.whole(layer):
            return torch.cat((torch.arange(len(is_visual), device=visual.device), answer))
        prompt = torch.empty_like(ordinal)
        prompt[alive] = visual[ordinal[alive]]
        prompt[~alive] = text
        return torch.cat((prompt, answer))

    def run(self, layer: int) -> tuple[int, int]:
        """The first and the last of the layers that share all their tokens with `layer`."""
        return next(run for run in self._runs if run[0] <= layer <= run[1])

    @contextmanager
    def choosing(self) -> Iterator[None]:
        """Tokens are chosen or dropped inside."""
        if self.mark is not None:
            self.mark()
        yield
        if self.mark is not None:
            self.mark()

    def check_choices(self) -> None:
        """Refuse what a selector chose if that cannot be; waits for the device.

        Raises:
            ValueError: names the selector.
        """
        doubts, self.doubts = self.doubts, []
        if any(bool(doubt) for doubt in doubts):
            assert self.plan.selector is not None
            raise complain(self.plan.selector.name)
        perhaps, self.perhaps = self.perhaps, []
        for true, said in perhaps:
            if said not in self.notes and bool(true.any()):
                self.notes.append(said)

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Go on with some rows of the batch alone, in this order: the others' answers have ended.

        What is on record of the others is gone; bytes are those of the rows that there were.
        """
        cache = self.cache
        assert cache is not None
        cache.layers = [x.thaw() if isinstance(x, TrimmedLayer) else x for x in cache.layers]
        cache.reorder_cache(torch.tensor(rows))  # type: ignore[arg-type]
        self.turns = [turn.of_rows(rows) for turn in self.turns]
        self.prompt = self.turns[0].prompt
        visual, text = self._places
        self._places = visual[rows], text[rows]
        self.shift = [self.shift[row] for row in rows]
        if self.padding is not None:
            self.padding = self.padding[rows]

    def step(self, tokens: int) -> None:
        """A later forward feeds `tokens` tokens: evict what annealing lets go, before it attends.

        One token is a generated one; more are a user's next turn, which is no generation.
        """
        self.generated += tokens == 1
        self._turned |= tokens > 1
        self._evict()
        self.record_bytes(new=tokens)

    def begin_turn(self, plan: Plan, prompt: Prompt) -> Turn:
        """A later forward brings visual tokens: what is to be known of them, from now on."""
        cache = self.cache
        assert cache is not None
        self._turned = True
        self._evict()
        base = cache.get_seq_length()
        turn = Turn.of(
            plan.schedule, plan.scorer, plan.groups, prompt,
            begun=self.generated, base=base, first=self.visual,
        )  # fmt: skip
        self.turns.append(turn)
        starts = sorted({group.first for turn in self.turns for group in turn.groups})
        ends = [start - 1 for start in starts[1:]] + [self.plan.layers]
        self._runs = list(zip(starts, ends, strict=True))
        return turn

    def _evict(self) -> None:
        """What the schedule and the windows let go by now."""
        cache = self.cache
        assert cache is not None
        if any(turn.schedule.anneals for turn in self.turns):
            for first, last in self._runs:
                left: dict[int, list[int]] = {}
                for layer in cache.trimmed(first, last):
                    if layer.gone not in left:
                        left[layer.gone] = self._left(first, layer.gone)
                    layer.evict(left[layer.gone])
        for number in self.plan.parts.windows:
            cache.layers[number - 1].expire()

    def _left(self, layer: int, gone: int) -> list[int]:
        """Visual tokens alive in each row of a layer which let the first `gone` turns go."""
        turns, rows = self.turns[gone:], range(len(self.prompt.visual))
        return [sum(turn.count(layer, row, self.generated) for turn in turns) for row in rows]

    def leaving(self, layer: int, turns: list[Turn]) -> list[list[int]]:
        """When visual tokens of some turns will leave `layer`, a list a row, soonest first."""
        rows = range(len(self.prompt.visual))
        return [
            sorted(t for turn in turns for t in turn.leaving(layer, row, self.generated))
            for row in rows
        ]

    def record_bytes(self, new: int = 0) -> None:
        """Note the bytes alive, once `new` tokens a layer will have been added."""
        assert self.cache is not None
        live = untrimmed = 0
        for layer in self.cache.trimmed():
            live += layer.token_bytes * (layer.alive + new)
            stock = layer.seen if layer.window is None else min(layer.seen, layer.window - 1)
            untrimmed += layer.plain_bytes * (stock + new)
        self.kv_bytes.append(live)
        self.untrimmed_kv_bytes.append(untrimmed)


def _reference(cache: TrimmedCache | None) -> weakref.ref[TrimmedCache] | None:
    return None if cache is None else weakref.ref(cache)
