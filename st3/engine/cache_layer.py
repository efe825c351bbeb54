"""One layer of the trimmed KV cache, which loses visual tokens without moving them.

Attention does not care in which order keys lie (RoPE is applied before they are cached), so a layer
stores its visual tokens sorted by importance, least first, in front of everything else:

    [ visual, least ... most | text | generated -> ]

Annealing is then a start pointer that moves right: no gather, no mask, no copy, and attention
reads one contiguous window of the buffers (`st3.engine.buffers`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from st3.engine.buffers import ROOM, SLACK, Buffers
from st3.engine.order import Order, to_device


class TrimmedLayer(Buffers):
    """Keys and values of one decoder layer.

    The first `visual` slots of the live window are visual tokens; `valid` marks padding, and rows
    that have fewer visual tokens than others. `seen` counts the tokens of the sequence as if none
    had been dropped, so that positions come out as untrimmed; `places` is there for masks that ask.
    `last_visual` is the last place of a visual token in the sequence. `turns` counts the forwards
    that brought some, `gone` those of which it has let all go before their schedule said so.
    `window` is how many tokens the layer sees at most, None where that is not limited. `offered` is
    what `update` got at prefill, which attention may see in another form; `coming`, what `expect`
    was told.
    """

    is_sliding = False
    offered: tuple[torch.Tensor, torch.Tensor] | None
    coming: tuple[int, torch.Tensor | None, torch.Tensor | None] | None

    window: int | None = None
    turns, gone = 1, 0
    last_visual = -1

    def __init__(self, kind: str = "auto") -> None:
        super().__init__(kind)
        self.reset()

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
        batch, heads, count, _ = key_states.shape
        if order is not None:
            count, valid, self.visual = order.index.shape[1], order.valid, order.visual
        # Where nothing leaves, nothing slides, and no slack is needed.
        slots = min(max(count + SLACK, self.slots_for(self.room)), count + self.room)
        if places is not None and order is not None:
            places = places.gather(1, order.index)
        self._allocate((batch, heads, slots), valid, places)
        keys, values = self._encoded(key_states, value_states)
        if order is None:
            self._write(keys, values)
            return
        self.end = count
        order.gather(keys, self.keys[:, :, :count])
        order.gather(values, self.values[:, :, :count])

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
                slots = self.keys.shape[2]
                self.valid = torch.ones(len(valid), slots, dtype=torch.bool, device=self.device)
            self.valid[:, coming] = valid
        self._write(*self._encoded(key_states, value_states))
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

    def lay_out(self, order: Order, generated: int, last_visual: int) -> None:
        """Lay the window out anew, once the tokens of a later turn were appended.

        Args:
            order: of the whole window, see `order.merged`.
            generated: tokens of the conversation so far.
            last_visual: the last place of a visual token in it.
        """
        self.turns, self.last_visual = self.turns + 1, last_visual
        count, room = order.index.shape[1], max(self.room, generated + ROOM)
        self._capacity, self.room = lambda t: count + max(0, t - generated), room
        places = self.live_places()
        if places is not None:
            places = places.gather(1, order.index.to(places.device))
        keys, values = (order.taken(slots) for slots in self.window_slots())
        self.visual = order.visual
        slots = max(self.slots_for(room), count + SLACK)
        self.refill(keys, values, order.valid, slots, places)

    @property
    def live_bytes(self) -> int:
        """Bytes of the keys and values that attention sees."""
        return sum(slots.nbytes for slots in self.window_slots()) if self.is_initialized else 0

    def thaw(self, room: int = 0) -> TrimmedLayer:
        """A plain layer with the same tokens: this one."""
        return self

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Make row i what row `beam_idx[i]` was: for beam search, or for some rows alone."""
        if not self.is_initialized:  # it borrows another layer's
            return
        index, rows = beam_idx.to(self.keys.device), len(self.keys)
        self.keys, self.values = self.keys[index], self.values[index]
        self.token_bytes = self.token_bytes * len(index) // rows
        self.plain_bytes = self.plain_bytes * len(index) // rows
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
