"""Where the demo's decoder is told to look, in training: two losses on its attention.

The last prompt token is to look at the objects (mean over heads), and one head at the objects that
the words speak of, in question and answer. Both come from what the renderer knows. The same rows
give the scores that rank visual tokens where training trims them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from st3.demo.training.packing import Packed


@dataclass
class Rows:
    """Some places of each row of a batch, padded to the same number K.

    place: int64 [B, K]; valid: bool [B, K].
    """

    place: torch.Tensor
    valid: torch.Tensor

    @classmethod
    def of(cls, pairs: torch.Tensor, size: int) -> tuple[Rows, tuple[torch.Tensor, torch.Tensor]]:
        """From (row, place) [M, 2] in the order of rows; also where each pair went, [M] twice."""
        row, place = pairs.unbind(1)
        count = torch.bincount(row, minlength=size)
        slot = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
        places = torch.zeros(size, int(count.max()), dtype=torch.long, device=row.device)
        valid = torch.zeros_like(places, dtype=torch.bool)
        places[row, slot] = place
        valid[row, slot] = True
        return cls(places, valid), (row, slot)

    def attention(
        self, query: torch.Tensor, keys: torch.Tensor, offset: int, scaling: float
    ) -> torch.Tensor:
        """Log of the attention [B, H, K, V] of these places (behind `offset`) to `keys` alone.

        Args:
            query: [B, H, n, D].
            keys: fp32 [B, H, V, D].
            offset: what to add to the places.
            scaling: factor of the logits.
        """
        index = (self.place + offset)[:, None, :, None]
        chosen = query.gather(2, index.expand(-1, query.shape[1], -1, query.shape[3])).float()
        return (chosen @ keys.transpose(2, 3) * scaling).log_softmax(-1)


@dataclass
class AttentionLoss:
    """Collects both losses of a forward, layer by layer, and the latest scores.

    Attributes:
        packed: the questions.
        owner: int64 [B, V], the object that each visual token shows, -1 for none.
        foreground: bool [B, V], covered by at least one half.
        first: tokens in front of the visual ones.
        general_layers, pointed_layers: where, counted from 0, either loss applies.
        scores: float32 [B, V], attention of each row's ranking question in the last layer observed.
    """

    packed: Packed
    owner: torch.Tensor
    foreground: torch.Tensor
    first: int
    general_layers: Sequence[int]
    pointed_layers: Sequence[int]
    scores: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        size = len(self.owner)
        self._last, _ = Rows.of(self.packed.last, size)
        self._pointed, where = Rows.of(self.packed.pointed, size)
        self._objects = torch.zeros_like(self._pointed.place)
        self._objects[where] = self.packed.objects
        self._general_losses: list[torch.Tensor] = []
        self._pointed_losses: list[torch.Tensor] = []
        self._aim()

    @property
    def visual(self) -> int:
        """Visual tokens alive."""
        return self.owner.shape[1]

    def _aim(self) -> None:
        """Spread each row's target evenly over the visual tokens that are alive and meant."""
        shown = self.foreground[:, None] & self._last.valid[:, :, None]
        self._general_target = shown / shown.sum(2, keepdim=True).clamp_min(1)
        owner = self.owner[:, None]
        meant = (self._objects[:, :, None] >> owner.clamp_min(0)) & (owner >= 0)
        meant = (meant == 1) & self.foreground[:, None] & self._pointed.valid[:, :, None]
        self._pointed_target = meant / meant.sum(2, keepdim=True).clamp_min(1)

    def keep(self, chosen: torch.Tensor) -> None:
        """From the next layer on only the visual tokens `chosen` [B, left] are alive."""
        self.owner = self.owner.gather(1, chosen)
        self.foreground = self.foreground.gather(1, chosen)
        self._aim()

    def observe(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        mask: torch.Tensor,
        scaling: float,
    ) -> None:
        """Read one layer's attention from a few places to the visual tokens.

        Args:
            layer: from 0.
            query, key: [B, H, n, D].
            mask: additive [B, 1, T, n], what the T text tokens see.
            scaling: factor of the logits.
        """
        if not self.visual:
            return
        end = self.first + self.visual
        keys = key[:, :, self.first : end].float()
        if layer in self.general_layers:
            log_p = self._last.attention(query, keys, end, scaling)
            mean = log_p.exp().mean(1).clamp_min(1e-9).log()
            self._general_losses.append(_cross_entropy(mean, self._general_target))
        if layer in self.pointed_layers:
            log_p = self._pointed.attention(query[:, :1], keys[:, :1], end, scaling)[:, 0]
            self._pointed_losses.append(_cross_entropy(log_p, self._pointed_target))
        with torch.no_grad():
            self.scores = self._ranking(query, key, mask, scaling)

    def _ranking(
        self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """Attention [B, V] of the last prompt token that ranks, as at inference.

        Softmax over all keys that it sees, mean over heads.
        """
        place = self.packed.ranking[:, None, None, None]
        end = self.first + self.visual
        row = query.gather(2, (place + end).expand(-1, query.shape[1], -1, query.shape[3]))
        logits = row.float() @ key.float().transpose(2, 3) * scaling
        logits += mask.gather(2, place.expand(-1, -1, -1, mask.shape[3]))
        return logits.softmax(-1).mean(1)[:, 0, self.first : end]

    def general(self) -> torch.Tensor:
        """Of the last prompt tokens, mean over layers; 0 where there was nothing to see."""
        return _mean(self._general_losses, self.owner)

    def pointed(self) -> torch.Tensor:
        """Of the words that speak of objects."""
        return _mean(self._pointed_losses, self.owner)


def _mean(losses: list[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    return torch.stack(losses).mean() if losses else torch.zeros((), device=like.device)


def _cross_entropy(log_p: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean of -sum(target log p) over the rows [B, K, V] that have a target."""
    rows = (target.sum(2) > 0).sum().clamp_min(1)
    return -(log_p * target).sum() / rows
