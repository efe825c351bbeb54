"""When each visual token leaves: what is drawn for any layer, after any generated token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from st3.engine.session import TrimSession
from st3.inference.places import Array, Places


@dataclass(frozen=True)
class Film:
    """When each visual token leaves each layer.

    Attributes:
        places: where tokens lie.
        layers: of the decoder.
        firsts: the first layer of each group, from 1.
        life: int [groups, tokens]: alive while fewer tokens than this have been generated.
    """

    places: Places
    layers: int
    firsts: tuple[int, ...]
    life: Array

    @classmethod
    def of(cls, session: TrimSession, places: Places, tokens: int, first: int = 0) -> Film:
        """Of the last generation, from `first` to at most so many generated tokens."""
        groups = session.groups
        life = np.zeros((len(groups), places.count), dtype=np.int64)
        first, last = (first, tokens) if session.schedule.anneals else (0, 0)
        counts = {t: session.kept_per_layer(0, t) for t in range(first, last + 1)}
        for row, group in zip(life, groups, strict=True):
            for t, count in counts.items():
                if t == last or counts[t + 1][group.first - 1] != count[group.first - 1]:
                    row[session.kept(group.first, 0, t)] = t + 1
        if not session.schedule.anneals:
            life[life > 0] = np.iinfo(np.int64).max
        return cls(places, session.layers, tuple(group.first for group in groups), life)

    def kept(self, layer: int, after: int) -> list[int]:
        """Visual tokens alive in `layer` (from 1) after so many generated tokens."""
        group = sum(first <= layer for first in self.firsts) - 1
        return [int(n) for n in np.flatnonzero(self.life[group] > after)]

    def deepest(self, after: int) -> Array:
        """The last layer that holds each visual token then, 0 where none does; int [tokens]."""
        ends = np.array([*(first - 1 for first in self.firsts[1:]), self.layers])
        found: Array = ((self.life > after) * ends[:, None]).max(axis=0)
        return found
