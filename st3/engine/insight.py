"""What a scorer asks for besides queries and keys: made when it asks, in the layer that decides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, isqrt
from typing import Any

import torch

from st3.engine.attention import FORWARD
from st3.families.parts import Parts
from st3.methods.merge import Merge

Grids = tuple[tuple[int, int] | None, ...]


@dataclass(frozen=True)
class Insight:
    """A `st3.methods.look.Look` of one layer.

    Attributes:
        parts: of the model.
        place, ordinal: int64 [B, n], of the tokens alive.
        embedded: what the decoder got, float [B, tokens, d], and what of it is visual, bool.
        again: makes queries and keys without positions.
        table: makes int64 [B, N, 2], line and column by a visual token's number in its row.
        returned: float [B, n, d], what the layer returned, once it has.
    """

    parts: Parts
    place: torch.Tensor
    ordinal: torch.Tensor
    embedded: tuple[torch.Tensor, torch.Tensor] | None = None
    again: Callable[[], tuple[torch.Tensor, torch.Tensor]] | None = None
    table: Callable[[], torch.Tensor] | None = None
    returned: torch.Tensor | None = None

    def states(self) -> torch.Tensor:
        """See `Look`."""
        found: torch.Tensor = _there(self.returned, "states")
        return found

    def normed(self) -> torch.Tensor:
        """See `Look`."""
        norm, states = self.parts.last_norm, self.states()
        if norm is None:
            return states
        device = next(norm.parameters()).device  # the last layer's, and this one may lie elsewhere
        found: torch.Tensor = norm(states.to(device)).to(states.device)
        return found

    def embeddings(self) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Look`."""
        embedded, visual = _there(self.embedded, "embeddings")
        return embedded.to(self.place.device), visual.to(self.place.device)

    def unrotated(self) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Look`."""
        found: tuple[torch.Tensor, torch.Tensor] = _there(self.again, "unrotated")()
        return found

    def cells(self) -> torch.Tensor:
        """See `Look`."""
        table: torch.Tensor = _there(self.table, "cells")()
        index = self.ordinal.clamp_max(table.shape[1] - 1)[..., None]
        return table.gather(1, index.expand(-1, -1, 2))


def _there(value: Any, what: str) -> Any:
    if value is None:
        raise RuntimeError(f"the scorer asks for {what!r}, which it does not name in its needs")
    return value


def blended(hidden: torch.Tensor, merge: Merge) -> torch.Tensor:
    """Hidden states [B, n, d] with the values that a scorer gives some of the tokens alive."""
    into, of, weight = (x.to(hidden.device) for x in (merge.into, merge.of, merge.weight.float()))
    rows = torch.arange(len(hidden), device=hidden.device)[:, None].expand_as(into)
    new = torch.zeros_like(hidden, dtype=torch.float32)
    new.index_put_((rows, into), hidden[rows, of].float() * weight[..., None], accumulate=True)
    named = torch.zeros(hidden.shape[:2], device=hidden.device)
    named.index_put_((rows, into), (weight != 0).float(), accumulate=True)
    return torch.where(named[..., None] > 0, new.to(hidden.dtype), hidden)


def cell_table(
    pictures: tuple[tuple[int, ...], ...], grids: Grids, device: torch.device
) -> torch.Tensor:
    """Int64 [B, N, 2], line and column of every visual token of each row.

    Args:
        pictures: in each row, the visual tokens of each picture.
        grids: of each picture, row by row, lines and columns; None where that is not known.
        device: where to.
    """
    if len(grids) != sum(map(len, pictures)):
        grids = (None,) * sum(map(len, pictures))
    return _cells(pictures, grids, device)


@lru_cache(maxsize=32)
def _cells(
    pictures: tuple[tuple[int, ...], ...], grids: Grids, device: torch.device
) -> torch.Tensor:
    most, known = max(map(sum, pictures)), iter(grids)
    found = torch.zeros(len(pictures), most, 2, dtype=torch.long)
    for row, sizes in zip(found, pictures, strict=True):
        begin = 0
        for size in sizes:
            grid = next(known)
            if grid is None or grid[0] * grid[1] != size:
                wide = max(1, isqrt(size))
                grid = ceil(size / wide), wide
            number = torch.arange(size)
            row[begin : begin + size, 0] = number // grid[1]
            row[begin : begin + size, 1] = number % grid[1]
            begin += size
    return found.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else found


class _Found(Exception):
    """Queries and keys, on the way out of a layer that is left in its attention."""

    def __init__(self, query: torch.Tensor, key: torch.Tensor) -> None:
        super().__init__()
        self.query, self.key = query, key


class _Probe:
    """In the place of a `Forward`: takes what attention is called with."""

    code = None

    def attend(
        self, module: Any, query: torch.Tensor, key: torch.Tensor, *_: Any, **__: Any
    ) -> Any:
        """Never returns."""
        raise _Found(query, key)


def without_positions(layer: Any, arguments: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys of a decoder layer with rotary phases of nought.

    The layer runs up to its attention once more, and fills no cache.

    Args:
        layer: of the decoder.
        arguments: that it was called with, by name.

    Raises:
        ValueError: its phases have a form that is not known.
    """
    named = {key: dict(x) if isinstance(x, dict) else x for key, x in arguments.items()}
    named |= {FORWARD: _Probe(), "position_embeddings": _nought(arguments["position_embeddings"])}
    named |= {key: None for key in ("past_key_values", "past_key_value") if key in named}
    try:
        layer.forward(**named)
    except _Found as found:
        return found.query, found.key
    raise RuntimeError("a layer did not call attention")


def _nought(phases: Any) -> Any:
    if isinstance(phases, torch.Tensor) and phases.is_complex():
        return torch.ones_like(phases)
    if isinstance(phases, tuple) and len(phases) == 2:
        return torch.ones_like(phases[0]), torch.zeros_like(phases[1])
    raise ValueError("this model's rotary phases have a form from which none can be taken out")
