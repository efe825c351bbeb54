"""Rows of different lengths for FlashAttention: end to end, without the padding between them.

transformers' own wrapper would do so in every layer, and make the host wait for the lengths each
time. Layers that share their tokens share this, and nothing waits: what is padding goes behind the
last row, where the lengths do not reach.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Line:
    """Tokens [B, m] in one line.

    Attributes:
        order: int64 [B x m], numbers of the tokens, those that are none at the end.
        real: bool [B x m], which of these are tokens.
        ends: int32 [B + 1], where rows end in it, 0 first.
        longest: tokens of the longest row, at most.
    """

    order: torch.Tensor
    real: torch.Tensor
    ends: torch.Tensor
    longest: int

    @classmethod
    def of(cls, valid: torch.Tensor) -> Line:
        """Of the tokens that are, bool [B, m]."""
        flat = valid.flatten()
        order = flat.logical_not().to(torch.uint8).argsort(stable=True)
        ends = torch.zeros(len(valid) + 1, dtype=torch.int32, device=valid.device)
        ends[1:] = valid.sum(1).cumsum(0)
        return cls(order, flat[order], ends, valid.shape[1])

    def put(self, states: torch.Tensor) -> torch.Tensor:
        """[B, heads, m, head size], in line: [1, heads, B x m, head size]."""
        return states.transpose(1, 2).flatten(0, 1)[self.order].transpose(0, 1)[None]

    def back(self, states: torch.Tensor, rows: int) -> torch.Tensor:
        """[1, B x m, heads, head size], in rows again: [B, m, heads, head size], else zeros."""
        # Where no row reaches, kernels write nothing.
        states = states[0].masked_fill(~self.real[:, None, None], 0)
        placed = torch.empty_like(states).index_copy_(0, self.order, states)
        return placed.view(rows, -1, *states.shape[1:])


@dataclass(frozen=True)
class Packed:
    """The queries and keys of a forward in some layers."""

    queries: Line
    keys: Line

    @classmethod
    def of(cls, valid: torch.Tensor, queries: int) -> Packed:
        """Of keys bool [B, k], the last of which ask."""
        keys = Line.of(valid)
        if queries == valid.shape[1]:
            return cls(keys, keys)
        return cls(Line.of(valid[:, -queries:]), keys)

    def attend(
        self,
        attention: Callable[..., Any],
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """What transformers' `attention` for FlashAttention makes of them, [B, q, heads, size]."""
        out, _ = attention(
            module, self.queries.put(query), self.keys.put(key), self.keys.put(value), None,
            cu_seq_lens_q=self.queries.ends, cu_seq_lens_k=self.keys.ends,
            max_length_q=self.queries.longest, max_length_k=self.keys.longest, **kwargs,
        )  # fmt: skip
        return self.queries.back(out, len(query)), None
