"""Where things are in a model: one convention, and what a family that departs from it says.

transformers' families of image-text-to-text models follow one convention: `model.model` merges
pictures into text, `get_decoder()` has the layers, and the configuration names the ids of the
placeholders. A family that departs from it has a file of its own in this folder, with an `ADAPTER`;
all others need nothing. Everything else works on decoder layers, attention functions and masks.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import nn

FAMILIES = (
    "st3 can trim models that have their pictures in the prompt, such as LLaVA, Qwen-VL, InternVL, "
    "Gemma, SmolVLM, Mistral and GLM-V (docs/models.md)"
)
"""What it is for, in messages."""
_IDS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")


def picture_id(config: Any, visual_ids: Sequence[int]) -> int:
    """The placeholder of a picture's tokens, where a video has another."""
    found = (getattr(config, name, None) for name in _IDS[:2])
    return next((number for number in found if number is not None), visual_ids[0])


def conventional_merger(model: Any) -> nn.Module:
    """`model.model`, or the model itself if it is that already or that is a mere text model."""
    merger: nn.Module = getattr(model, "model", model)
    return model if merger is conventional_decoder(model) else merger


def conventional_decoder(model: Any) -> nn.Module | None:
    """What `get_decoder()` finds, or what lies in it as `model`, whichever has `layers`."""
    found = model.get_decoder() if hasattr(model, "get_decoder") else None
    for decoder in (found, getattr(found, "model", None)):
        if isinstance(getattr(decoder, "layers", None), nn.ModuleList):
            return decoder
    return None


def conventional_ids(config: Any) -> tuple[int, ...]:
    """The ids of the placeholders of pictures and videos."""
    found = {getattr(config, name, None) for name in _IDS}
    return tuple(sorted(number for number in found if isinstance(number, int)))


@dataclass(frozen=True)
class Adapter:
    """How to find one family's parts.

    Attributes:
        model_type: the configuration's `model_type`.
        merger: the module whose forward gets `input_ids` and merges pictures into the text.
        decoder: the text model; it has `layers`.
        visual_ids: from the configuration, the ids of the placeholders of one visual token.
        token_arguments: further arguments of a layer that belong to tokens, and how many dimensions
            each has behind that of the tokens.
        place_queries: for attention that scales queries by their number in the sequence: attention
            module, queries [B, heads, n, head size], places int64 [B, n] -> queries as if nothing
            had been dropped.
        frame_tokens: of the configuration, how many visual tokens a frame of a video becomes, where
            frames lie end to end and nothing else tells them apart.
        video_ends: of the merger, how many visual tokens it puts behind a video's features.
    """

    model_type: str
    merger: Callable[[Any], nn.Module] = conventional_merger
    decoder: Callable[[Any], nn.Module | None] = conventional_decoder
    visual_ids: Callable[[Any], tuple[int, ...]] = conventional_ids
    token_arguments: tuple[tuple[str, int], ...] = ()
    place_queries: Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor] | None = None
    video_ends: Callable[[Any], int] | None = None
    frame_tokens: Callable[[Any], int] | None = None


@cache
def departures() -> dict[str, Adapter]:
    """Model type -> adapter, of the families that have a file of their own."""
    package = import_module(__package__)
    modules = (
        import_module(f"{__package__}.{m.name}") for m in pkgutil.iter_modules(package.__path__)
    )
    found: list[Adapter] = [module.ADAPTER for module in modules if hasattr(module, "ADAPTER")]
    return {adapter.model_type: adapter for adapter in found}


def find_adapter(config: Any) -> Adapter:
    """The adapter of a configuration's family: its own, or the convention."""
    model_type = str(getattr(config, "model_type", None))
    return departures().get(model_type) or Adapter(model_type)


def visual_mask(ids: tuple[int, ...], input_ids: torch.Tensor) -> torch.Tensor:
    """bool [B, n]: which tokens of the prompt stand for a piece of a picture."""
    mask = input_ids == ids[0]
    for number in ids[1:]:
        mask = mask | (input_ids == number)
    return mask
