"""In which order tokens lie in a layer of the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


def to_device(values: Sequence[Any], device: torch.device) -> torch.Tensor:
    """int64 [n] or [m, n] on `device`, without making the host wait for it."""
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

    def to(self, device: torch.device) -> Order:
        """The same on another device."""
        valid = None if self.valid is None else self.valid.to(device)
        return Order(self.index.to(device), valid, self.visual)

    def taken(self, states: torch.Tensor) -> torch.Tensor:
        """[B, key heads, n, head size], laid out in new memory."""
        out = states.new_empty(*states.shape[:2], self.index.shape[1], states.shape[3])
        self.gather(states, out)
        return out

    def gather(self, states: torch.Tensor, out: torch.Tensor) -> None:
        """Lay [B, key heads, n, head size] out in `out` [B, key heads, m, head size]."""
        index = self.index.to(states.device)
        if len(index) == 1:  # several times faster than a gather
            torch.index_select(states, 2, index[0], out=out)
            return
        wide = index[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3])
        torch.gather(states, 2, wide, out=out)


def merged(
    order: Order,
    old: Sequence[Sequence[int]],
    new: Sequence[Sequence[int]],
    visual: int,
    live: int,
    valid: torch.Tensor | None,
) -> Order:
    """The layout of a window to which the tokens of a later turn were appended.

    Visual tokens of all turns lie in front, in the order in which they will leave: then one pointer
    still lets go what each turn's schedule says.

    Args:
        order: of the turn's own tokens, by their numbers in it.
        old, new: a list a row of when each visual token leaves, soonest first: of earlier turns,
            and of this one.
        visual: slots of visual tokens in the window before, of `live` in all.
        valid: bool [B, live + tokens of the turn], or None if every slot holds a token.
    """
    device, rows = order.index.device, []
    width = max(len(gone) + len(come) for gone, come in zip(old, new, strict=True))
    for gone, come in zip(old, new, strict=True):
        first, second = visual - len(gone), live + order.visual - len(come)
        slots = [(t, first + n) for n, t in enumerate(gone)]
        slots += [(t, second + n) for n, t in enumerate(come)]
        rows.append([-1] * (width - len(slots)) + [slot for _, slot in sorted(slots)])
    rest = [*range(visual, live), *range(live + order.visual, live + order.index.shape[1])]
    columns = to_device([row + rest for row in rows], device)
    known = torch.arange(live, device=device).expand(len(rows), live)
    source = torch.cat((known, live + order.index), dim=1)
    index = source.gather(1, columns.clamp_min(0))
    if valid is None and order.valid is None:
        return Order(index, None, width)
    before = torch.ones_like(known, dtype=torch.bool) if valid is None else valid[:, :live]
    own = torch.ones_like(order.index, dtype=torch.bool) if order.valid is None else order.valid
    alive = torch.cat((before.to(device), own), dim=1).gather(1, columns.clamp_min(0))
    return Order(index, alive & (columns >= 0), width)
