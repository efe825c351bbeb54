"""One layer of the trimmed KV cache, which loses visual tokens without moving them.

Attention does not care in which order keys lie (RoPE is applied before they are cached), so a layer
stores its visual tokens sorted by importance, least first, in front of everything else:

    [ visual, least ... most | text | generated -> ]

Annealing is then a start pointer that moves right: no gather, no mask, no copy, and attention
reads one contiguous window. When the window reaches the end of the buffer it slides back to slot 0,
over slots that annealing has freed. Buffers are allocated once, for as many generated tokens as the
generation may have; where that is not known, for 64 and then for twice as many each time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers.cache_utils import CacheLayerMixin

from st3.engine.order import Order, merged, to_device

_STEP = 8  # slots are a multiple of it, which masks of some attention kernels must be
_ROOM = 64  # generated tokens that a buffer first has room for, where nobody said how many
SLACK = 32  # slots beyond what is ever alive, so that sliding back stays rare


class TrimmedLayer(CacheLayerMixin):
    """Keys and values of one decoder layer.

    `keys` and `values` are the buffers, [B, key heads, slots, head size]; the live window is
    `start`..`end`, of which the first `visual` slots are visual tokens. `valid` is None, or a bool
    [B, slots] that is False where a row of the batch has nothing (padding, or fewer visual tokens
    than another row). `seen` counts the tokens of the sequence as if none had been dropped, so that
    positions come out as untrimmed. `places` is None, or int64 [B, slots]: where each token stood
    in that sequence, for masks that ask. Slots are a multiple of `step`. `spare` are buffers that
    may be taken, if they fit, in place of new ones. `room` is how many generated tokens fit, and
    `token_bytes` what one slot takes in all rows.
    `last_visual` is the last place of a visual token in the sequence. `turns` counts the forwards
    that brought some, `gone` those of which it has let all go before their schedule said so.
    `window` is how many tokens the layer sees at most, None where that is not limited. `offered` is
    what `update` got at prefill, which attention may see in another form.
    """

    is_sliding = False
    keys: torch.Tensor
    values: torch.Tensor
    valid: torch.Tensor | None
    places: torch.Tensor | None
    offered: tuple[torch.Tensor, torch.Tensor] | None
    coming: tuple[int, torch.Tensor | None, torch.Tensor | None] | None

    window: int | None = None
    turns, gone = 1, 0
    last_visual = -1

    def __init__(self) -> None:
        super().__init__()
        self.spare: tuple[torch.Tensor, torch.Tensor] | None = None
        self.step = _STEP
        self.room = _ROOM
        self.reset()
        self._capacity: Callable[[int], int] = lambda generated: generated

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Remember dtypes and device; the buffers come with `store`.

        Under autocast keys and values differ: the rotary embedding brings keys back to fp32.
        """
        self.dtype, self.device = key_states.dtype, key_states.device
        self.value_dtype = value_states.dtype
        self.is_initialized = True

    def store(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        *,
        seen: int,
        capacity: Callable[[int], int],
        room: int | None,
        valid: torch.Tensor | None,
        order: Order | None,
        places: torch.Tensor | None = None,
    ) -> None:
        """Fill the layer with what prefill left alive. No gradient flows back through it.

        Args:
            key_states, value_states: [B, key heads, n, head size], in prompt order.
            seen: length of the prompt before anything was dropped.
            capacity: number of generated tokens -> the most tokens alive at once until then.
            room: how many generated tokens there will be at most, None if nobody knows.
            valid: bool [B, n], or None if every token is one.
            order: how to lay the tokens out; None keeps prompt order.
            places: int64 [B, n], where they stood in the prompt; None if no mask will ask.
        """
        self.offered = None
        self.lazy_initialization(key_states, value_states)
        self._capacity, self.room, self.seen = capacity, room or self.room, seen
        batch, heads, count, size = key_states.shape
        if order is not None:
            count, valid, self.visual = order.index.shape[1], order.valid, order.visual
        # Where nothing leaves, nothing slides, and no slack is needed.
        slots = min(max(count + SLACK, self.slots_for(self.room)), count + self.room)
        if places is not None and order is not None:
            places = places.gather(1, order.index)
        self._allocate((batch, heads, slots, size), value_states.shape[3], valid, places)
        self.end = count
        for states, buffer in ((key_states, self.keys), (value_states, self.values)):
            if order is None:
                buffer[:, :, :count] = states.detach()
            else:
                order.gather(states.detach(), buffer[:, :, :count])

    def evict(self, left: Sequence[int]) -> None:
        """Let the least important visual tokens go until `left` of them are left in each row."""
        self._own()
        left = [min(count, self.visual) for count in left]
        self.start += self.visual - max(left)
        self.visual = max(left)
        if min(left) < self.visual:
            assert self.valid is not None
            place = torch.arange(self.visual, device=self.device)
            own = to_device(left, self.device)
            window = slice(self.start, self.start + self.visual)
            self.valid[:, window] = place >= self.visual - own[:, None]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append tokens and return the live window.

        At prefill the states are handed back as they are: what is kept comes through `store`.
        """
        if not self.is_initialized:
            self.offered = key_states, value_states
            return key_states, value_states
        self._own()
        new = key_states.shape[2]
        tokens, valid, places = self.coming or (new, None, None)
        self.coming = None
        if self.end + new > self.keys.shape[2]:
            self.make_room(new)
        coming = slice(self.end, self.end + new)
        if self.places is not None:
            if places is None:
                places = torch.arange(new, device=self.places.device)
            self.places[:, coming] = self.seen + places
        if valid is not None:
            if self.valid is None:
                self.valid = valid.new_ones(len(valid), self.keys.shape[2])
            self.valid[:, coming] = valid
        self._write(key_states, value_states)
        self.seen += tokens
        return self.live()

    def expect(
        self, tokens: int, valid: torch.Tensor | None, places: torch.Tensor | None = None
    ) -> None:
        """The coming `update` brings what is left of `tokens` tokens of the sequence.

        `valid` bool [B, n], or None if each is one; `places` int64 [B, n] of those that are left,
        from 0, or None if all are.
        """
        self.coming = tokens, valid, places

    def merge(
        self,
        order: Order,
        old: Sequence[Sequence[int]],
        new: Sequence[Sequence[int]],
        *,
        appended: int,
        generated: int,
        last_visual: int,
    ) -> None:
        """Lay out anew, once the tokens of a later turn were appended; see `order.merged`.

        Args:
            order, old, new: as there.
            appended: tokens at the end of the window that are the turn's.
            generated: tokens of the conversation so far.
            last_visual: the last place of a visual token in it.
        """
        self.turns, self.last_visual = self.turns + 1, last_visual
        live = self.alive - appended
        order = merged(order, old, new, self.visual, live, self.live_valid())
        count, room = order.index.shape[1], max(self.room, generated + _ROOM)
        self._capacity, self.room = lambda t: count + max(0, t - generated), room
        places = self.live_places()
        if places is not None:
            places = places.gather(1, order.index)
        keys, values = (order.taken(states) for states in self.live())
        self.visual = order.visual
        slots = max(self.slots_for(room), count + SLACK)
        self.refill(keys, values, order.valid, slots, places)

    @property
    def alive(self) -> int:
        """Tokens alive, in the row that has most."""
        return self.end - self.start

    @property
    def live_bytes(self) -> int:
        """Bytes of the keys and values that attention sees."""
        return sum(states.nbytes for states in self.live()) if self.is_initialized else 0

    def live(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of the keys and values that attention sees."""
        window = slice(self.start, self.end)
        return self.keys[:, :, window], self.values[:, :, window]

    def live_valid(self) -> torch.Tensor | None:
        """The live window of `valid`, bool [B, tokens]."""
        return None if self.valid is None else self.valid[:, self.start : self.end]

    def live_places(self) -> torch.Tensor | None:
        """The live window of `places`, int64 [B, tokens]."""
        return None if self.places is None else self.places[:, self.start : self.end]

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Make row i what row `beam_idx[i]` was, for beam search."""
        index = beam_idx.to(self.keys.device)
        self.keys, self.values = self.keys[index], self.values[index]
        if self.valid is not None:
            self.valid = self.valid[index]
        if self.places is not None:
            self.places = self.places[index]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length of the untrimmed sequence after the next `query_length` tokens, and no offset."""
        return self.seen + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens of the sequence so far, dropped ones included."""
        return self.seen

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    get_max_cache_shape = get_max_length  # its name before transformers 5.17

    def crop(self, tokens_to_remove: int) -> None:
        """Refused: what has been evicted cannot come back.

        Raises:
            ValueError: always.
        """
        raise ValueError("st3.trim cannot take tokens back: turn assisted decoding off")

    def reset(self) -> None:
        """Forget everything, and free the buffers."""
        self.keys = self.values = torch.empty(0)
        self.valid = self.places = self.offered = self.coming = None
        self.is_initialized = False
        self.start = self.end = self.visual = self.seen = 0

    def slots_for(self, generated: int) -> int:
        """Slots that so many generated tokens need, with slack so that sliding stays rare."""
        return self._capacity(generated) + SLACK

    def _allocate(
        self,
        shape: tuple[int, ...],
        value_size: int,
        valid: torch.Tensor | None,
        places: torch.Tensor | None,
    ) -> None:
        """New buffers [B, key heads, slots, head size]; `valid`, `places` [B, n] of the first n."""
        slots = -(-shape[2] // self.step) * self.step
        shapes = (*shape[:2], slots, shape[3]), (*shape[:2], slots, value_size)
        spare, self.spare = self.spare, None
        dtypes = self.dtype, self.value_dtype
        if spare is not None and all(
            _alike(states, size, dtype, self.device)
            for states, size, dtype in zip(spare, shapes, dtypes, strict=True)
        ):
            self.keys, self.values = spare
        else:
            del spare  # before there is something new
            self.keys, self.values = (
                torch.empty(size, dtype=dtype, device=self.device)
                for size, dtype in zip(shapes, dtypes, strict=True)
            )
        self.token_bytes = (self.keys.nbytes + self.values.nbytes) // slots
        self.start = self.end = 0
        self.valid = self.places = None
        if valid is not None:
            self.valid = valid.new_ones(shape[0], slots)
            self.valid[:, : valid.shape[1]] = valid
        if places is not None:
            self.places = places.new_zeros(shape[0], slots)
            self.places[:, : places.shape[1]] = places

    def _own(self) -> None:
        """Buffers made under `inference_mode` cannot be written outside of it: copy them once."""
        if self.keys.is_inference() and not torch.is_inference_mode_enabled():
            self._move(self.keys.shape[2])

    def _move(self, slots: int) -> None:
        """The live window, at slot 0 of new buffers of so many slots."""
        self.refill(*self.live(), self.live_valid(), slots, self.live_places())

    def _write(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        end = self.end + keys.shape[2]
        self.keys[:, :, self.end : end] = keys.detach()
        self.values[:, :, self.end : end] = values.detach()
        self.end = end

    def make_room(self, new: int) -> None:
        """Make free slots: slide back to slot 0, or into a larger buffer if this is outgrown."""
        alive, slots = self.alive, self.keys.shape[2]
        if self.start >= min(SLACK // 2, alive) and alive + new <= slots:
            self.slide()
            return
        while self._capacity(self.room) < alive + new:
            self.room *= 2
        self._move(max(self.slots_for(self.room), alive + new))

    def refill(
        self,
        keys: torch.Tensor,
        values: torch.Tensor,
        valid: torch.Tensor | None,
        slots: int,
        places: torch.Tensor | None = None,
    ) -> None:
        """Start from slot 0 of new buffers of so many slots."""
        batch, heads, _, size = keys.shape
        self._allocate((batch, heads, slots, size), values.shape[3], valid, places)
        self._write(keys, values)

    def slide(self) -> None:
        """Move the window to slot 0 in place, in steps so short that no copy overlaps itself."""
        alive, shift = self.alive, self.start
        if not shift:
            return
        if shift < min(SLACK // 2, alive):  # too many steps
            self._move(self.keys.shape[2])
            return
        for first in range(0, alive, shift):
            last = min(first + shift, alive)
            for buffer in (self.keys, self.values):
                buffer[:, :, first:last] = buffer[:, :, first + shift : last + shift]
            for marks in (self.valid, self.places):
                if marks is not None:
                    marks[:, first:last] = marks[:, first + shift : last + shift]
        if self.valid is not None:
            self.valid[:, alive:] = True
        self.start, self.end = 0, alive


def _alike(
    states: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> bool:
    """Whether a buffer may serve as one of this kind."""
    writable = torch.is_inference_mode_enabled() or not states.is_inference()
    return writable and (states.shape, states.dtype, states.device) == (shape, dtype, device)
