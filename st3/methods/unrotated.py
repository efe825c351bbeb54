"""The last prompt token's attention to visual tokens as if all stood at one place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from st3.methods.scorers import LayerView


def unrotated_attention(view: LayerView) -> torch.Tensor:
    """Float32 [B, n]: softmax over visual keys alone, without positions, mean over heads.

    Rotary positions favour keys near the end of the picture (FEATHER, arXiv 2412.13180).
    """
    query, key = view.look.unrotated()
    batch, heads, _, size = query.shape
    groups, tokens = key.shape[1], view.visual.shape[1]
    query = query[:, :, -1:].reshape(batch, groups, heads // groups, size)
    with torch.autocast(query.device.type, enabled=False):
        logits = query.float() @ key[:, :, -tokens:].float().transpose(2, 3) * view.scaling
    logits = logits.reshape(batch, heads, tokens)
    if view.softcap is not None:
        logits = (logits / view.softcap).tanh() * view.softcap
    logits = logits.masked_fill(~view.visual[:, None], torch.finfo(torch.float32).min)
    return view.merged(logits.softmax(-1))
