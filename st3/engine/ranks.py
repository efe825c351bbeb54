"""The ranks of a model under tensor parallelism, each of which holds some of its attention heads.

A mean over heads is another number on every rank, and ranks that went by it would drop different
tokens. Scorers merge heads through `LayerView`, which asks `HeadRanks` for those of the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed

from st3.methods.scorers import How


@dataclass(frozen=True)
class HeadRanks:
    """The processes that share a model's heads, each with equally many.

    Attributes:
        group: of processes. `size`: how many they are.
    """

    group: Any
    size: int

    def __call__(self, values: torch.Tensor, how: How) -> torch.Tensor:
        """What each rank has of its own heads, as it is of all heads; the same bits on every rank.

        One all-reduce of `values`, float32 of any shape; nothing waits on the host.
        """
        if how == "mean":  # of equally many heads each; gloo has no average
            merged, operation = values.detach() / self.size, distributed.ReduceOp.SUM
        else:
            merged, operation = values.detach().clone(), distributed.ReduceOp.MAX
        merged = merged.contiguous()
        distributed.all_reduce(merged, operation, self.group)
        return merged


def head_ranks(model: Any) -> HeadRanks | None:
    """The ranks that transformers spread a model's heads over, None where it is whole.

    Raises:
        ValueError: it was spread, and does not say over which processes.
    """
    if (getattr(model, "_tp_size", None) or 1) < 2:
        return None
    mesh = getattr(model, "_device_mesh", None)
    if mesh is None:
        raise ValueError(
            "st3 cannot trim a tensor-parallel model that has no device mesh: load it by "
            "st3.load(..., tensor_parallel=True)"
        )
    # One dimension without a name in older versions; `tp` among others in newer ones.
    group = mesh.get_group() if mesh.ndim == 1 else mesh.get_group("tp")
    return HeadRanks(group, distributed.get_world_size(group))
