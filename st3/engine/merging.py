"""Merging: tokens get new values, weighted sums of others', and what else they carry follows.

One sparse matrix a batch of prompts, applied to embeddings before the decoder sees them, and to the
features of pictures that a decoder adds later. A merged token stays where it stood.
"""

from __future__ import annotations

import torch

_AT_ONCE = 1 << 25  # numbers of products at a time


class Merging:
    """The matrix; a token that nothing is merged into keeps its value.

    Args:
        row: int64 [G, 1], the prompt of each pool.
        into, of: int64 [G, m], places in that prompt: of the result, and of what is added.
        weight: float [G, m]; 0 where nothing is to be added.
    """

    def __init__(
        self, row: torch.Tensor, into: torch.Tensor, of: torch.Tensor, weight: torch.Tensor
    ) -> None:
        self.row, self.into, self.of = row.expand_as(into), into, of
        self.weight = weight.float()

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """What belongs to the prompts' tokens [B, n, d], merged; summed in fp32 at least."""
        wide = torch.promote_types(values.dtype, torch.float32)
        new = torch.zeros_like(values, dtype=wide)
        pools, most = self.into.shape
        step = max(1, _AT_ONCE // max(1, pools * values.shape[2]))
        for begin in range(0, most, step):
            row, into, of, weight = (
                x[:, begin : begin + step] for x in (self.row, self.into, self.of, self.weight)
            )
            part = values[row, of].to(wide) * weight[..., None].to(wide)
            new.index_put_((row, into), part, accumulate=True)
        named = torch.zeros(values.shape[:2], device=values.device)
        named.index_put_((self.row, self.into), (self.weight != 0).float(), accumulate=True)
        return torch.where(named[..., None] > 0, new.to(values.dtype), values)
