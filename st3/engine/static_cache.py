"""The trimmed KV cache with static shapes, for decode steps that are recorded once and replayed.

A CUDA graph replays the same kernels on the same addresses, so nothing in a step may depend on
Python: the number t of generated tokens lies on the device, and slots and masks follow from it
there. The buffers are those that prefill filled:

    [ visual, least ... most | text, generated | free ]

Attention reads all slots under a bias. Annealing hides the first visual slots, and
when the free slots are used up, generated tokens go into those: a ring that needs no more slots
than are ever alive at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch

from st3.engine.cache_layer import TrimmedLayer
from st3.engine.order import to_device
from st3.methods.schedule import Group, Schedule


def _take(target: TrimmedLayer, source: TrimmedLayer) -> None:
    """Give `target` the buffers of `source`, and all that both kinds of layer know."""
    names = (
        "keys values valid visual seen dtype kind key_form value_form device is_initialized "
        "_capacity room token_bytes plain_bytes"
    )
    for name in names.split():
        setattr(target, name, getattr(source, name))


class Slots:
    """Which slots of a group's layers are alive, and where the next token goes, from t alone.

    All that depends on a prompt lies on the device too, so that a recording outlives it: `fill`
    prepares for another prompt whose layers have as many slots.

    Args:
        layer: one of the group's layers, for the shape, dtype and device of its buffers.

    Attributes:
        count: slots of each layer, a multiple of 8.
        horizon: the largest t whose token has a slot.
        slot: int64 [1], where generated token t goes.
        alive: bool [B, slots]. `bias`: the same [B, 1, 1, slots] to add to attention logits, in the
            cache's dtype. All three are rewritten in place by `place`.
    """

    def __init__(self, layer: TrimmedLayer) -> None:
        device = layer.keys.device
        batch, _, self.count, _ = layer.keys.shape
        self.horizon = 0
        self.number = torch.arange(self.count, device=device)
        self.valid = torch.ones(batch, self.count, dtype=torch.bool, device=device)
        self.alive = torch.zeros_like(self.valid)
        self.bias = torch.zeros_like(self.valid, dtype=layer.dtype)[:, None, None]
        self.slot = torch.zeros(1, dtype=torch.long, device=device)
        # Visual tokens left after t generated ones, for each t that has a slot.
        self.left = torch.zeros(self.count + 1, batch, 1, dtype=torch.long, device=device)
        # The first slot behind the visual tokens, and behind the prompt's.
        self.first, self.end = torch.zeros(2, 1, dtype=torch.long, device=device)
        self._filled: tuple[Any, ...] = ()

    def fill(
        self,
        layer: TrimmedLayer,
        schedule: Schedule,
        group: Group,
        visual: Sequence[int],
        generated: int,
    ) -> None:
        """Prepare for the tokens that `layer` holds after `generated` generated ones.

        Args:
            layer: one of the group's layers, its window at slot 0.
            schedule, group: what will leave, and when.
            visual: visual tokens of each prompt of the batch before anything was dropped.
            generated: tokens so far.
        """
        if layer.valid is None:
            self.valid.fill_(True)
        else:
            self.valid.copy_(layer.valid)
        wanted = (schedule, group, tuple(visual), layer.visual, layer.end, generated)
        if wanted == self._filled:
            return
        self._filled = wanted
        others = layer.end - layer.visual
        kinds = sorted({*visual})
        left = [[schedule.count(group.first, n, t) for n in kinds] for t in range(generated + 1)]
        while True:
            t = len(left)
            row = [schedule.count(group.first, n, t) for n in kinds]
            needed = others + t - generated + (row[-1] if schedule.anneals else 0)
            if needed > self.count or t > self.count:
                break
            left.append(row)
        self.horizon = len(left) - 1
        device = self.left.device
        # One slot for each generated token.
        places = to_device([layer.visual, layer.end - generated], device)
        self.first.copy_(places[:1])
        self.end.copy_(places[1:])
        table = to_device([row[kinds.index(n)] for row in left for n in visual], device)
        self.left[: len(left)] = table.view(len(left), len(visual), 1)

    def place(self, t: torch.Tensor) -> None:
        """Prepare for the step that feeds generated token t, int64 [1] on the device."""
        left = self.left.index_select(0, t)[0]
        end = self.end + t
        fresh = (self.number >= self.first - left) & (self.number < end) & self.valid
        self.alive.copy_(fresh | (self.number < end - self.count))
        self.bias.zero_().masked_fill_(~self.alive[:, None, None], torch.finfo(self.bias.dtype).min)
        self.slot.copy_((end - 1) % self.count)


class StaticLayer(TrimmedLayer):
    """A `TrimmedLayer` whose buffers, from now on, are a ring of slots.

    On the host it only counts; a replayed step does not pass through `update`, so whoever replays
    calls `fed`.
    """

    def __init__(self, layer: TrimmedLayer, slots: Slots) -> None:
        super().__init__()
        _take(self, layer)
        self.slots = slots
        self.first = layer.visual  # the first slot behind the visual tokens
        self.others = layer.end - layer.visual
        self.fresh = 0
        # A weight of nought times whatever free memory holds might be no number.
        for buffer in (self.keys, self.values):
            buffer[:, :, layer.end :] = 0

    def evict(self, left: Sequence[int]) -> None:
        """Note how many visual tokens are left; the mask follows from t."""
        self.visual = max(left)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put one token into its slot, and return all slots: `slots.alive` says which count."""
        keys, values = self._encoded(key_states, value_states)
        self.keys.index_copy_(2, self.slots.slot, keys)
        self.values.index_copy_(2, self.slots.slot, values)
        return self.key_form.decode(self.keys), self.value_form.decode(self.values)

    def stand_in(
        self, keys: torch.Tensor, values: torch.Tensor, slot: torch.Tensor, bias: torch.Tensor
    ) -> StaticLayer:
        """A layer like it with these tensors for whoever traces a step.

        It knows no counts: asked for one, it raises AttributeError, and no code holds it.
        """
        other = object.__new__(StaticLayer)
        other.keys, other.values = keys, values
        other.key_form, other.value_form = self.key_form, self.value_form
        other.slots = SimpleNamespace(slot=slot, bias=bias)  # type: ignore[assignment]
        return other

    def fed(self) -> None:
        """One more token has been generated and fed."""
        self.fresh += 1
        self.seen += 1

    @property
    def alive(self) -> int:
        """Tokens alive, in the row that has most."""
        return self.visual + self.others + self.fresh

    @property
    def live_bytes(self) -> int:
        """Bytes of the slots that are alive."""
        return (self.keys.nbytes + self.values.nbytes) // self.slots.count * self.alive

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """As `TrimmedLayer`, but the buffers stay where they are."""
        index = beam_idx.to(self.keys.device)
        self.keys.copy_(self.keys[index])
        self.values.copy_(self.values[index])

    def thaw(self, room: int = 0) -> TrimmedLayer:
        """The same tokens in a plain layer again, with room for so many generated tokens at least.

        For a step that the recording does not fit.
        """
        plain = TrimmedLayer()
        _take(plain, self)
        plain.room = max(plain.room, room)  # also for the next generation
        count, end = self.slots.count, self.first + self.others + self.fresh
        parts = [
            slice(self.first - self.visual, min(end, count)),
            slice(0, max(0, end - count)),
        ]
        valid = None
        if self.valid is not None:
            valid = torch.cat([self.slots.alive[:, part] for part in parts], dim=1)
        keys, values = (
            torch.cat([buffer[:, :, part] for part in parts], dim=2)
            for buffer in (self.keys, self.values)
        )
        plain.refill(keys, values, valid, max(count, plain.slots_for(room)))
        return plain
