"""What belongs to a token follows it by its original place, whatever shape it has.

Rotary phases of one, two or three axes, real or complex, position ids, arguments of layers, and
features that a model adds to its tokens after early layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from st3.engine.merging import Merging


class Followers:
    """Gathers tensors of a prompt's tokens down to those alive.

    Layers of a group mostly get the same tensor, which is then gathered once.

    Args:
        tokens: of the padded prompt.
    """

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self._known: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # id -> itself, gathered

    def forget(self) -> None:
        """Other tokens are alive from now on."""
        self._known.clear()

    def gather(self, value: Any, place: torch.Tensor, behind: int) -> Any:
        """The part of `value` that belongs to the tokens at `place` int64 [B, m].

        Args:
            value: a tensor [..., B or 1, tokens, ...], or a tuple of such; anything else, and what
                is not as long as the prompt, is handed back.
            behind: how many dimensions come after that of the tokens.
        """
        if isinstance(value, tuple):
            return tuple(self.gather(part, place, behind) for part in value)
        if not isinstance(value, torch.Tensor) or value.shape[-1 - behind] != self.tokens:
            return value
        known = self._known.get(id(value))
        if known is None:
            place = place.to(value.device)
            rows = torch.arange(len(place), device=value.device)[:, None]
            if value.shape[-2 - behind] == 1:
                rows = torch.zeros_like(rows)
            index: Any = (..., rows, place, *[slice(None)] * behind)
            known = self._known[id(value)] = value, value[index]
        return known[1]


class Features:
    """Features of pictures that a decoder adds between its layers (DeepStack).

    Args:
        mask: bool [B, n], the tokens that get them.
        layers: layer behind which they are added, 0 for the embeddings -> float [tokens of `mask`,
            d], in row order.
    """

    def __init__(self, mask: torch.Tensor, layers: Mapping[int, torch.Tensor]) -> None:
        self.mask, self.layers = mask, layers
        self.number = (mask.flatten().long().cumsum(0) - 1).clamp_min(0).view(mask.shape)

    def merge(self, merging: Merging) -> dict[int, torch.Tensor]:
        """Merge them as the embeddings are; returns them, by layer, float [B, n, d]."""
        device = merging.row.device
        mask, number = self.mask.to(device), self.number.to(device)
        found = {
            layer: merging(extra.to(device)[number].masked_fill(~mask[..., None], 0))
            for layer, extra in self.layers.items()
        }
        self.layers = {layer: extra.flatten(0, 1) for layer, extra in found.items()}
        self.number = torch.arange(mask.numel(), device=device).view(mask.shape)
        return found

    def add(
        self, layer: int, hidden: torch.Tensor, place: torch.Tensor, valid: torch.Tensor | None
    ) -> torch.Tensor:
        """What `layer` returned, float [B, m, d], with its features, if it has any.

        `place` int64 [B, m] and `valid` bool [B, m] or None say which tokens these are.
        """
        if layer not in self.layers:
            return hidden
        mask, number = (x.to(place.device).gather(1, place) for x in (self.mask, self.number))
        if valid is not None:
            mask = mask & valid
        extra = self.layers[layer].to(hidden.device, hidden.dtype)[number]
        return hidden + extra.masked_fill(~mask[..., None], 0)
