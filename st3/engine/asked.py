"""What a forward was asked for: its arguments, read, and refused where trimming cannot serve."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from inspect import unwrap
from typing import Any

import torch
from transformers import DynamicCache, GenerationMixin

from st3.engine.cache import TrimmedCache
from st3.engine.prompt import Prompt
from st3.families.parts import Parts

_BRINGING = ("pixel", "image_features", "inputs_embeds", "mm_encoder_outputs")
"""What is in the names of arguments that bring what visual tokens stand for."""
_FEATURES = {"deepstack_visual_embeds": "visual_pos_masks", "deepstack_features": "vision_mask"}
"""Arguments of decoders with features to add, and those that say to which tokens."""
_GENERATE = unwrap(GenerationMixin.generate).__code__


def brings_pictures(args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether the arguments of the module that merges pictures into text hold any."""
    # transformers 5.23 encodes pictures beforehand, and hands on an empty dict where are none.
    brought = (value for name, value in kwargs.items() if any(part in name for part in _BRINGING))
    return len(args) > 1 or any(bool(x) if isinstance(x, dict) else x is not None for x in brought)


def fed_tokens(kwargs: dict[str, Any]) -> int:
    """How many tokens a forward feeds."""
    fed = kwargs.get("inputs_embeds")
    return int((kwargs["input_ids"] if fed is None else fed).shape[1])


def padding_mask(mask: Any) -> torch.Tensor | None:
    """The attention mask [B, tokens so far], if there is one.

    Raises:
        ValueError: a mask of another form.
    """
    if mask is None or (isinstance(mask, torch.Tensor) and mask.dim() == 2):
        return mask
    kind = f"a {mask.dim()}-D one" if isinstance(mask, torch.Tensor) else type(mask).__name__
    raise ValueError(f"st3.trim needs a mask [batch, tokens], got {kind}")


def check_pictured(prompt: Prompt, *, pictured: bool) -> None:
    """Refuse places for visual tokens without pictures."""
    if any(prompt.visual) and not pictured:
        raise ValueError(
            f"the prompt has places for {max(prompt.visual)} visual tokens, and nothing to put "
            "there: give pixel_values"
        )


def check_turn(parts: Parts, prompt: Prompt) -> None:
    """Refuse what a later turn cannot bring to this model."""
    if parts.lenders and any(prompt.visual):
        raise ValueError(
            "st3 cannot take a picture in a later turn of a model whose layers borrow keys: put "
            "every picture into the first"
        )
    if parts.recurrent and not prompt.full:
        raise ValueError(
            "a model with recurrent layers takes no padding in a later turn: feed the rows one by "
            "one"
        )


def unpadded(kwargs: dict[str, Any], *, padded: bool) -> dict[str, Any]:
    """No mask where nothing is padded: what is made of it would be thrown away."""
    plain = isinstance(kwargs.get("attention_mask"), torch.Tensor) and not padded
    return {"attention_mask": None} if plain else {}


def take_features(
    kwargs: dict[str, Any],
) -> tuple[torch.Tensor, Mapping[int, torch.Tensor]] | None:
    """What the decoder would add between its layers; we do: it does not know who is gone.

    Returns:
        Arguments of `Features`; None where there are none.
    """
    for name, mask in _FEATURES.items():
        features = kwargs.get(name)
        if features is not None:
            kwargs[name] = None
            where = kwargs[mask]
            layers = features if isinstance(features, Mapping) else dict(enumerate(features, 1))
            return where[..., 0] if where.dim() == 3 else where, layers
    return None


def check_once(parts: Parts) -> None:
    """Refuse layers that will be computed again, which other tokens are alive in by then."""
    if any(getattr(x, "gradient_checkpointing", False) and x.training for x in parts.layers):
        raise ValueError(
            "st3 cannot trim under gradient checkpointing, which computes a layer again when its "
            "tokens have changed: model.gradient_checkpointing_disable(), or model.eval()"
        )


def check_cache(cache: Any) -> None:
    """Refuse a cache that a prefill cannot take the place of."""
    if cache is None:
        return
    empty = isinstance(cache, DynamicCache) and not cache.get_seq_length()
    if not empty or getattr(cache, "offloading", False):
        why = cache.closed if isinstance(cache, TrimmedCache) else None
        raise ValueError(
            why
            or f"st3.trim brings its own KV cache and cannot go on from a {type(cache).__name__}: "
            "start with the whole prompt, a new DynamicCache() or none, and cache_implementation "
            "unset"
        )


def in_chunks() -> bool:
    """Whether the `generate` that calls us feeds the prompt piece by piece.

    It tells no forward so: the setting can only be read where `generate` keeps it.
    """
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code is not _GENERATE:
        frame = frame.f_back
    setting = frame.f_locals.get("generation_config") if frame.f_code is _GENERATE else None
    return getattr(setting, "prefill_chunk_size", None) is not None
