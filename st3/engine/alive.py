"""Which of a prompt's tokens are alive in a group of layers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from st3.engine.prompt import Prompt


@dataclass(frozen=True)
class Alive:
    """B rows of n tokens alive, in the order of their prompt.

    Attributes:
        tokens: of the prompt.
        visual: bool [B, n]. `ordinal`: int64 [B, n], a visual token's number among its row's.
        place: int64 [B, n], in what the forward was given.
        valid: bool [B, n], which are tokens; None if all are.
        whole: whether nothing has been dropped.
    """

    tokens: int
    visual: torch.Tensor
    ordinal: torch.Tensor
    place: torch.Tensor
    valid: torch.Tensor | None
    whole: bool

    @classmethod
    def of(cls, prompt: Prompt, visual: torch.Tensor, mask: torch.Tensor | None) -> Alive:
        """All that a forward brings: `visual` bool [B, n], `mask` [B, n] or None for attention."""
        place = torch.arange(prompt.tokens, device=visual.device).expand(visual.shape)
        ordinal = (visual.long().cumsum(1) - 1).clamp_min(0)
        valid = None if mask is None or prompt.full else mask.bool()
        return cls(prompt.tokens, visual, ordinal, place, valid, whole=True)

    def to(self, device: torch.device) -> Alive:
        """The same on another device."""
        if self.place.device == device:
            return self
        valid = None if self.valid is None else self.valid.to(device)
        visual, ordinal, place = (x.to(device) for x in (self.visual, self.ordinal, self.place))
        return replace(self, visual=visual, ordinal=ordinal, place=place, valid=valid)

    def taken(self, index: torch.Tensor, visual: torch.Tensor, valid: torch.Tensor | None) -> Alive:
        """Some of them, by `index` int64 [B, m]; `visual` and `valid` [B, m] say what they are."""
        ordinal, place = self.ordinal.gather(1, index), self.place.gather(1, index)
        return Alive(self.tokens, visual, ordinal, place, valid, whole=False)
