"""Llama 4: layers without rotary positions scale their queries by their number in the sequence.

The model takes that number from a count of what is left; here it becomes the place in the prompt.
"""

from __future__ import annotations

from typing import Any

import torch

from st3.families.base import Adapter


def _scale(module: Any, number: torch.Tensor) -> torch.Tensor:
    """The model's own factor of queries with these numbers, float32 of the same shape."""
    steps = torch.floor((number.float() + 1) / module.floor_scale)
    scaled: torch.Tensor = torch.log1p(steps) * module.attn_scale + 1
    return scaled


def _place(module: Any, query: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    if module.use_rope or not module.attn_temperature_tuning:
        return query
    counted = torch.arange(places.shape[1], device=places.device)
    right = _scale(module, places) / _scale(module, counted)
    return (query * right[:, None, :, None]).to(query.dtype)


ADAPTER = Adapter("llama4", place_queries=_place)
