"""The only code that knows a model family: where the layers are, and which tokens are visual.

To add a family, add an `Adapter` to `ADAPTERS`. Everything else works on decoder layers, attention
functions and token masks alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

DECODERS = ("llama", "mistral", "qwen2")
"""`model_type` of the text models whose layers our hooks fit."""


@dataclass(frozen=True)
class Adapter:
    """How to find one family's parts.

    Attributes:
        model_type: the configuration's `model_type`.
        example: a Hub id of the family, for messages.
        merger: the module whose forward gets `input_ids` and merges pictures into the text.
        decoder: the text model; it has `layers`, each with `self_attn`.
        visual_token_id: the id of the placeholder of one visual token.
    """

    model_type: str
    example: str
    merger: Callable[[Any], nn.Module]
    decoder: Callable[[Any], nn.Module]
    visual_token_id: Callable[[Any], int]


ADAPTERS = {
    adapter.model_type: adapter
    for adapter in (
        Adapter(
            model_type="llava",
            example="llava-hf/llava-1.5-7b-hf",
            merger=lambda model: getattr(model, "model", model),
            decoder=lambda model: getattr(model, "model", model).language_model,
            visual_token_id=lambda config: config.image_token_id,
        ),
    )
}


def known_families() -> str:
    """The families that have an adapter, each with an example, for messages."""
    return ", ".join(f"{a.model_type} (e.g. {a.example})" for a in ADAPTERS.values())


def find_family(model_type: str | None) -> Adapter:
    """The adapter for a family.

    Raises:
        ValueError: there is none; those that have one are named.
    """
    adapter = ADAPTERS.get(str(model_type))
    if adapter is None:
        raise ValueError(
            f"st3 has no adapter for the model family {model_type!r}; it has: {known_families()}"
        )
    return adapter


def find_adapter(config: Any) -> Adapter:
    """The adapter for a model configuration.

    Raises:
        ValueError: no adapter for this family or its text model; those that have one are named.
    """
    adapter = find_family(getattr(config, "model_type", None))
    text = config.get_text_config()
    if text.model_type not in DECODERS or getattr(text, "sliding_window", None):
        window = " with a sliding window" if getattr(text, "sliding_window", None) else ""
        raise ValueError(
            f"st3 cannot trim a {text.model_type!r} text model{window}; "
            f"it can trim: {', '.join(DECODERS)}"
        )
    return adapter


def attention_function(decoder: nn.Module, name: str) -> Callable[..., Any]:
    """The function that transformers would call for the attention implementation `name`."""
    from transformers import AttentionInterface

    if name == "eager":  # not registered: every modelling file has its own
        module = sys.modules[type(decoder).__module__]
        eager: Callable[..., Any] = module.eager_attention_forward
        return eager
    function: Callable[..., Any] = AttentionInterface()[name]
    return function


def visual_mask(adapter: Adapter, model: PreTrainedModel, input_ids: torch.Tensor) -> torch.Tensor:
    """bool [B, n]: which tokens of the prompt stand for a piece of a picture."""
    return input_ids == adapter.visual_token_id(model.config)
