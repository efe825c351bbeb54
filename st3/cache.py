"""The trimmed KV cache: layers of different lengths that lose visual tokens without moving them.

Attention does not care in which order keys lie (RoPE is applied before they are cached), so a layer
stores its visual tokens sorted by importance, least first, in front of everything else:

    [ visual, least ... most | text | generated -> ]

Annealing is then a start pointer that moves right: no gather, no mask, no copy, and attention
reads one contiguous window. When the buffer is full the window slides back to slot 0, or, if it has
really outgrown the buffer, into one for twice as many generated tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

_ROOM = 64  # generated tokens that a buffer first has room for
_SLACK = 32  # slots beyond what is ever alive, so that sliding back stays rare


def to_device(values: Sequence[int], device: torch.device) -> torch.Tensor:
    """int64 [n] on `device`, without making the host wait for it."""
    return torch.tensor(values, pin_memory=device.type == "cuda").to(device, non_blocking=True)


@dataclass(frozen=True)
class Order:
    """A layout of n tokens in m slots: `visual` of them first, least important first.

    `index` int64 [B, m] says which token goes into which slot; `valid` bool [B, m] or None as in
    `TrimmedLayer`.
    """

    index: torch.Tensor
    valid: torch.Tensor | None
    visual: int

    def apply(self, states: torch.Tensor) -> torch.Tensor:
        """[B, key heads, n, head size] -> [B, key heads, m, head size]."""
        index = self.index.to(states.device)[:, None, :, None]
        return states.gather(2, index.expand(-1, states.shape[1], -1, states.shape[3]))


class TrimmedLayer(CacheLayerMixin):
    """Keys and values of one decoder layer.

    `keys` and `values` are the buffers, [B, key heads, slots, head size]; the live window is
    `start`..`end`, of which the first `visual` slots are visual tokens. `valid` is None, or a bool
    [B, slots] that is False where a row of the batch has nothing (padding, or fewer visual tokens
    than another row). `seen` counts the tokens of the sequence as if none had been dropped, so that
    positions come out as untrimmed.
    """

    is_sliding = False
    keys: torch.Tensor
    values: torch.Tensor
    valid: torch.Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.reset()
        self._capacity: Callable[[int], int] = lambda generated: generated
        self._room = _ROOM

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Remember dtype and device; the buffers come with `store`."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def store(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        *,
        seen: int,
        capacity: Callable[[int], int],
        valid: torch.Tensor | None,
        order: Order | None,
    ) -> None:
        """Fill the layer with what prefill left alive.

        Args:
            key_states, value_states: [B, key heads, n, head size], in prompt order.
            seen: length of the prompt before anything was dropped.
            capacity: number of generated tokens -> the most tokens alive at once until then.
            valid: bool [B, n], or None if every token is one.
            order: how to lay the tokens out; None keeps prompt order.
        """
        self.lazy_initialization(key_states, value_states)
        self._capacity, self._room, self.seen = capacity, _ROOM, seen
        if order is not None:
            key_states, value_states = order.apply(key_states), order.apply(value_states)
            valid, self.visual = order.valid, order.visual
        count = key_states.shape[2]
        self._refill(key_states, value_states, valid, max(count, capacity(_ROOM)) + _SLACK)

    def sort(self, order: Order) -> None:
        """Lay the live tokens out anew: for layers that were stored before they were scored."""
        keys, values = (order.apply(states) for states in self.live())
        self.visual = order.visual
        self._refill(keys, values, order.valid, self.keys.shape[2])

    def evict(self, left: Sequence[int]) -> None:
        """Let the least important visual tokens go until `left` of them are left in each row."""
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
            return key_states, value_states
        new = key_states.shape[2]
        if self.end + new > self.keys.shape[2]:
            self._make_room(new)
        self._write(key_states, value_states)
        self.seen += new
        return self.live()

    def live(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of the keys and values that attention sees."""
        window = slice(self.start, self.end)
        return self.keys[:, :, window], self.values[:, :, window]

    def live_valid(self) -> torch.Tensor | None:
        """The live window of `valid`, bool [B, tokens]."""
        return None if self.valid is None else self.valid[:, self.start : self.end]

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Make row i what row `beam_idx[i]` was, for beam search."""
        index = beam_idx.to(self.keys.device)
        self.keys, self.values = self.keys[index], self.values[index]
        if self.valid is not None:
            self.valid = self.valid[index]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Live length after the next `query_length` tokens, and no offset."""
        return self.end - self.start + query_length, 0

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
        self.valid = None
        self.is_initialized = False
        self.start = self.end = self.visual = self.seen = 0

    def _refill(
        self, keys: torch.Tensor, values: torch.Tensor, valid: torch.Tensor | None, slots: int
    ) -> None:
        """Start from slot 0 of new buffers."""
        batch, heads, count, size = keys.shape
        self.keys = keys.new_empty(batch, heads, slots, size)
        self.values = torch.empty_like(self.keys)
        self.start = self.end = 0
        self._write(keys, values)
        self.valid = None
        if valid is not None:
            self.valid = valid.new_ones(batch, slots)
            self.valid[:, :count] = valid

    def _write(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        end = self.end + keys.shape[2]
        self.keys[:, :, self.end : end] = keys
        self.values[:, :, self.end : end] = values
        self.end = end

    def _make_room(self, new: int) -> None:
        """Slide the live window back to slot 0, into a larger buffer if it needs one."""
        keys, values = self.live()
        needed, slots = keys.shape[2] + new, self.keys.shape[2]
        if self.start < _SLACK // 2 or needed > slots:
            while self._capacity(self._room) < needed:
                self._room *= 2
            slots = self._capacity(self._room) + _SLACK
        self._refill(keys, values, self.live_valid(), slots)


class TrimmedCache(Cache):
    """A `Cache` of `TrimmedLayer`s: what `generate` carries along inside `st3.trim`."""

    layers: list[TrimmedLayer]  # type: ignore[assignment]

    def __init__(self, layers: int) -> None:
        super().__init__(layers=[TrimmedLayer() for _ in range(layers)])
        self.closed = False

    def close(self) -> None:
        """Free everything; any further use raises."""
        self.closed = True
        self.reset()

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `TrimmedLayer.update`.

        Raises:
            RuntimeError: the `st3.trim` that made the cache has ended.
        """
        if self.closed:
            raise RuntimeError(
                "this KV cache belongs to an st3.trim that has ended: generate inside its `with`"
            )
        return self.layers[layer_idx].update(key_states, value_states)

    @property
    def live_tokens(self) -> list[int]:
        """Tokens alive in each layer; the widest row's where rows differ."""
        return [layer.end - layer.start for layer in self.layers]

    @property
    def live_bytes(self) -> int:
        """Bytes of the keys and values that attention sees."""
        return sum(x.nbytes for layer in self.layers if layer.is_initialized for x in layer.live())

    @property
    def allocated_bytes(self) -> int:
        """Bytes of all buffers, free slots included."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers)
