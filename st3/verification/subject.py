"""The model that is verified: the checkpoint itself, or a tiny random one of its configuration."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch

from st3.families.meta import meta_model
from st3.families.parts import find_parts
from st3.inference.random_weights import random_model
from st3.inference.shrink import shrink
from st3.units import si
from st3.verification.prompts import Question, question_for

_RUNS = 1.5
"""Memory for a run, as a multiple of the weights."""
_WAYS: tuple[tuple[str, dict[str, bool] | None], ...] = (
    ("narrower and of fewer layers, with a small vision tower", {}),
    ("narrower and of fewer layers, with a narrow vision tower", {"pictures": False}),
    ("narrower and of fewer layers", {"tower": False}),
    ("of fewer layers", {"narrower": False, "tower": False}),
    ("as it is", None),
)
_QUERIES = ("q_proj", "qkv_proj", "q_b_proj", "query_key_value")
_SMALL = 64  # of a model that is as it is


def memory_short(config: Any, dtype: torch.dtype, free: int) -> str | None:
    """Why a model does not fit into so many bytes, None if it does."""
    needed = int(meta_model(config).num_parameters() * dtype.itemsize * _RUNS)
    if needed <= free:
        return None
    word = str(dtype).removeprefix("torch.")
    return f"it needs about {si(needed, 'B')} in {word}, and {si(free, 'B')} are free"


def tiny_model(
    config: Any, *, device: str, dtype: torch.dtype, seed: int, attention: str | None = None
) -> tuple[Any, Question, str]:
    """A tiny random model of a configuration, a prompt that it takes, and how it was made tiny.

    Raises:
        ValueError: none of the ways to make it tiny gives a model that runs.
    """
    why = "it cannot be made smaller"
    for how, small in _smaller(config):
        try:
            model: Any = random_model(
                small, device=device, dtype=dtype, seed=seed, attn_implementation=attention
            )
            sharpen(model, seed)
            return model, question_for(model, seed=seed), how
        except Exception as error:  # shapes that do not go together fail in many ways
            why = " ".join(f"{type(error).__name__} {error}".split())[:200]
    raise ValueError(f"no tiny model of this configuration runs: {why}")


def sharpen(model: Any, seed: int) -> None:
    """Make a random model's attention far from uniform, so that mistakes show."""
    decoder = find_parts(model).decoder
    generator = torch.Generator(model.device).manual_seed(seed)
    embeddings = model.get_input_embeddings()
    scale = float(getattr(embeddings, "embed_scale", 1.0) or 1.0)
    plain = any(getattr(m, "scaling", None) == 1.0 for m in decoder.modules())
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1 and not bool(weight.abs().sum()):
                weight.normal_(std=0.1, generator=generator)
        embeddings.weight.normal_(std=1 / scale, generator=generator)
        for name, weight in decoder.named_parameters():
            if name.rpartition(".")[0].endswith(_QUERIES):
                weight.mul_(2)
            elif name.endswith("q_norm.weight"):
                weight.add_(-0.5 if plain else 0.8)


def _smaller(config: Any) -> Iterator[tuple[str, Any]]:
    for how, options in _WAYS:
        if options is None:
            if config.get_text_config().hidden_size > _SMALL:
                continue
            small = copy.deepcopy(config)
        else:
            try:
                small = shrink(config, **options)
            except (ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError):
                continue
        small.name_or_path = ""  # the checkpoint's own processor is for the checkpoint's own tower
        yield how, small
