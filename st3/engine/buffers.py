"""Buffers of keys and values with a live window in them, which moves to the right.

When it reaches the end it slides back to slot 0, over slots that have been freed, or moves into
larger buffers. Buffers are allocated once, for as many generated tokens as the generation may have;
where that is not known, for 64 and then for twice as many each time.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable

import torch
from transformers.cache_utils import CacheLayerMixin

from st3.engine.codes import Codes, Plain, codec

_STEP = 8  # slots are a multiple of it, which masks of some attention kernels must be
ROOM = 64  # generated tokens that a buffer first has room for, where nobody said how many
SLACK = 32  # slots beyond what is ever alive, so that sliding back stays rare


class Buffers(CacheLayerMixin, ABC):
    """Keys and values in slots.

    `keys` and `values` are the buffers, [B, key heads, slots, head size] as `key_form` and
    `value_form` write them, `kind` one of `KV_CACHE_DTYPES`; the live window is `start`..`end`.
    `valid` is None, or a bool [B, slots] that is False where a row of the batch has nothing.
    `places` is None, or int64 [B, slots]: where each token stood in the sequence. Slots are a
    multiple of `step`. `spare` are buffers that may be taken, if they fit, in place of new ones.
    `room` is how many generated tokens fit, `token_bytes` what one slot takes in all rows and
    `plain_bytes` what it would as the model makes keys and values.
    """

    keys: torch.Tensor
    values: torch.Tensor
    valid: torch.Tensor | None
    places: torch.Tensor | None

    key_form: Plain | Codes
    value_form: Plain | Codes

    def __init__(self, kind: str = "auto") -> None:
        super().__init__()
        self.kind = kind
        self.spare: tuple[torch.Tensor, torch.Tensor] | None = None
        self.step = _STEP
        self.room = ROOM
        self.start = self.end = 0
        self._capacity: Callable[[int], int] = lambda generated: generated

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Remember dtypes and device; the buffers come with `store`.

        Under autocast keys and values differ: the rotary embedding brings keys back to fp32.
        """
        self.dtype, self.device = key_states.dtype, key_states.device
        self.key_form, self.value_form = (
            codec(self.kind, key_states),
            codec(self.kind, value_states),
        )
        tokens = key_states.shape[2]
        self.plain_bytes = (key_states.nbytes + value_states.nbytes) // tokens
        self.is_initialized = True

    @property
    def alive(self) -> int:
        """Tokens alive, in the row that has most."""
        return self.end - self.start

    def live(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys and values that attention sees: views of the buffers, or decoded from them."""
        keys, values = self.window_slots()
        return self.key_form.decode(keys), self.value_form.decode(values)

    def window_slots(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of the slots alive, as they are held."""
        window = slice(self.start, self.end)
        return self.keys[:, :, window], self.values[:, :, window]

    def live_valid(self) -> torch.Tensor | None:
        """The live window of `valid`, bool [B, tokens]."""
        return None if self.valid is None else self.valid[:, self.start : self.end]

    def live_places(self) -> torch.Tensor | None:
        """The live window of `places`, int64 [B, tokens]."""
        return None if self.places is None else self.places[:, self.start : self.end]

    def slots_for(self, generated: int) -> int:
        """Slots that so many generated tokens need, with slack so that sliding stays rare."""
        return self._capacity(generated) + SLACK

    def _allocate(
        self,
        shape: tuple[int, ...],
        valid: torch.Tensor | None,
        places: torch.Tensor | None,
    ) -> None:
        """New buffers [B, key heads, slots]; `valid`, `places` [B, n] of the first n."""
        slots = -(-shape[2] // self.step) * self.step
        forms = self.key_form, self.value_form
        shapes = [(*shape[:2], slots, form.size) for form in forms]
        dtypes = [form.dtype for form in forms]
        spare, self.spare = self.spare, None
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
            self.valid = torch.ones(shape[0], slots, dtype=torch.bool, device=self.device)
            self.valid[:, : valid.shape[1]] = valid
        if places is not None:
            self.places = torch.zeros(shape[0], slots, dtype=torch.long, device=self.device)
            self.places[:, : places.shape[1]] = places

    def _own(self) -> None:
        """Buffers made under `inference_mode` cannot be written outside of it: copy them once."""
        if self.keys.is_inference() and not torch.is_inference_mode_enabled():
            self._move(self.keys.shape[2])

    def _move(self, slots: int) -> None:
        """The live window, at slot 0 of new buffers of so many slots."""
        self.refill(*self.window_slots(), self.live_valid(), slots, self.live_places())

    def _encoded(
        self, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """States as slots hold them; no gradient flows back."""
        return self.key_form.encode(keys.detach()), self.value_form.encode(values.detach())

    def _write(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        end = self.end + keys.shape[2]
        self.keys[:, :, self.end : end] = keys
        self.values[:, :, self.end : end] = values
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
        """Start from slot 0 of new buffers of so many slots, with what slots held."""
        self._allocate((*keys.shape[:2], slots), valid, places)
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
