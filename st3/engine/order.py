"""In which order tokens lie in a layer of the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


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

    def gather(self, states: torch.Tensor, out: torch.Tensor) -> None:
        """Lay [B, key heads, n, head size] out in `out` [B, key heads, m, head size]."""
        index = self.index.to(states.device)
        if len(index) == 1:  # several times faster than a gather
            torch.index_select(states, 2, index[0], out=out)
            return
        wide = index[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3])
        torch.gather(states, 2, wide, out=out)
