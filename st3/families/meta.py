"""A model without its weights: enough to judge whether it fits, and to count what it computes."""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_MANY = 8
FAILURES = (TypeError, RuntimeError, ValueError, AttributeError, IndexError, KeyError)
"""What a model's own code raises where it cannot run without numbers or weights."""
# Configuration -> model: several places ask for the same one, again and again.
_BUILT: dict[str, Any] = {}


def meta_model(config: Any) -> Any:
    """The model on the meta device, in bfloat16 and, where it can, with SDPA; built once.

    Raises:
        ValueError: the configuration builds no model that answers questions about pictures.
    """
    key = identity(config)
    if key not in _BUILT:
        model = fresh_model(config)
        if len(_BUILT) >= _MANY:
            _BUILT.clear()
        _BUILT[key] = model
    return _BUILT[key]


def fresh_model(config: Any) -> Any:
    """The same, the caller's own.

    Raises:
        ValueError: the configuration builds no model that answers questions about pictures.
    """
    text = config.get_text_config()
    for name in _SIZES:
        size = size_in(text, name, 1)
        if isinstance(size, int) and size < 1:
            raise ValueError(f"text_config.{name} must be a whole number from 1 on, got {size!r}")
    try:
        return _build(config).eval()
    except (
        ValueError, TypeError, RuntimeError, AttributeError, KeyError, ZeroDivisionError,
        ImportError,
    ) as error:  # fmt: skip
        if "Unrecognized configuration class" in str(error):
            raise ValueError(
                f"the family {config.model_type!r} is none that answers questions about pictures "
                "(transformers' image-text-to-text)"
            ) from None
        what = " ".join(f"{type(error).__name__} {error}".split())
        raise ValueError(f"this configuration builds no model: {what}") from error


def size_in(config: Any, name: str, default: Any = None) -> Any:
    """What a configuration says of its layers; where these differ, of the first of them."""
    try:
        return getattr(config, name, default)
    except RuntimeError:  # transformers' word for: each layer has its own
        return getattr(config.per_layer_config[0], name, default)


def identity(config: Any) -> str:
    """What tells two configurations apart."""
    return f"{type(config).__name__} {config.to_json_string(use_diff=False)}"


def _build(config: Any, attention: str = "sdpa") -> Any:
    try:
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(
                copy.deepcopy(config),  # dtype and attention are written into it
                dtype=torch.bfloat16,
                attn_implementation=attention,
                trust_remote_code=False,
            )
    except ValueError as error:
        if attention == "eager" or "scaled_dot_product_attention" not in str(error):
            raise
        return _build(config, "eager")


@lru_cache(maxsize=_MANY)
def hides_features(merger: Any) -> bool:
    """Whether a model on the meta device hands pictures' features on where nobody looks for them.

    Tried with a square picture, as large as the tower asks for; not told, and so false, where that
    is none that the family takes.
    """
    try:
        side = merger.config.vision_config.image_size
        blank = torch.zeros(1, 3, side, side, dtype=merger.dtype, device="meta")
        made = merger.get_image_features(pixel_values=blank, return_dict=True)
    except FAILURES:
        return False
    return getattr(made, "pooler_output", made) is None
