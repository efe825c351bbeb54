"""What the class token of vLLM's CLIP towers looks at, where a method goes by it.

vLLM's kernels hand out no attention: the one row that is needed, that of the class token in the
block whose output the projector gets, is computed once more from the block's own queries and keys,
as in transformers. That block is the last: vLLM builds none behind it.
"""

from __future__ import annotations

from typing import Any

import torch


class ClassToken:
    """Watches one tower.

    Args:
        tower: a `CLIPVisionModel` of vLLM.

    Raises:
        ValueError: the tower has another form.
    """

    def __init__(self, tower: Any) -> None:
        try:
            self.attention = tower.vision_model.encoder.layers[-1].self_attn
            self.attention.qkv_proj.register_forward_hook(self._see)
        except (AttributeError, IndexError):
            raise ValueError(
                f"st3: {type(tower).__name__} is no CLIP tower, whose class token could be watched"
            ) from None
        self._rows: list[torch.Tensor] = []

    def take(self) -> torch.Tensor | None:
        """Float32 [crops, patches], mean over heads, of all crops since the last time."""
        rows, self._rows = self._rows, []
        return torch.cat(rows) if rows else None

    def _see(self, module: Any, args: Any, output: Any) -> None:
        attention = self.attention
        states = output[0] if isinstance(output, tuple) else output
        query, key, _ = states.detach().chunk(3, dim=-1)
        heads, width = attention.num_heads_per_partition, attention.head_dim
        crops, tokens, _ = key.shape
        first = query[:, :1].reshape(crops, 1, heads, width).float()
        keys = key.reshape(crops, tokens, heads, width).float()
        logits = torch.einsum("bqhd,bkhd->bhqk", first, keys) * attention.scale
        row = logits.softmax(-1)[:, :, 0].mean(1)
        if attention.tp_size > 1:  # the other heads lie on other ranks
            from vllm.distributed import tensor_model_parallel_all_reduce

            row = tensor_model_parallel_all_reduce(row) / attention.tp_size
        self._rows.append(row[:, 1:])
