"""Which model to time: trained weights, random ones of the same shape, or none, and why."""

from __future__ import annotations

from typing import Any, Literal

import torch

from st3.families.meta import meta_model
from st3.inference.checkpoints import find, in_cache
from st3.inference.loading import load
from st3.inference.quantization import Quantization
from st3.inference.random_weights import random_model
from st3.inference.weights import check_fits, predicted_bytes
from st3.machine import free_memory
from st3.profiling.picture import picture_if_any
from st3.profiling.placement import Places, dispatched
from st3.profiling.shape import Shape, Workload, shape_of
from st3.units import si

SLOW = 1_000_000_000
"""Parameters above which a CPU is only timed if that is asked for: it would take many minutes."""


def choose(
    name: str | None,
    config: Any,
    work: Workload,
    *,
    weights: Literal["auto", "random", "pretrained"],
    device: torch.device,
    dtype: torch.dtype,
    seed: int = 0,
    attn_implementation: str | None = None,
    quantization: Quantization | None = None,
    places: Places | None = None,
) -> tuple[Any, str | None, str]:
    """A live model to time, or None.

    Args:
        name: for `st3.load`; None for a bare configuration.
        config: of the model.
        work: the largest workload.
        weights: `auto` takes trained weights that are on this machine, else random ones, and gives
            way where the model does not fit or would be slow; no weights are downloaded.
        device, dtype: where and in what.
        seed: of random weights.
        attn_implementation: passed to transformers.
        quantization: of the decoder's linear layers.
        places: where each module lies, if a device map says so.

    Returns:
        The model, "pretrained" or "random", and a sentence to print; or (None, None, why not).

    Raises:
        ValueError: weights asked for by name that there are not, or a model that does not fit.
        OSError: not found, or not reachable.
    """
    shape = shape_of(meta_model(config))
    count = f"{si(shape.parameters)} parameters"
    picture, unknown = picture_if_any(config, work.picture, work.together, work.frames)
    reason = None
    if picture is None:
        reason = unknown
    elif work.visual % picture.tokens:
        reason = f"{work.visual} visual tokens are no whole number of pictures of {picture.tokens}"
    elif work.visual + work.text + work.new > shape.context:
        reason = (
            f"{work.visual + work.text + work.new} tokens do not fit a context of {shape.context}"
        )
    eager = attn_implementation == "eager"
    held = sum(predicted_bytes(config, dtype, quantization, device).values())
    needed, free = memory_needed(shape, work, dtype, held, eager=eager), free_memory(device)
    if needed > free and places is None:
        reason = (
            f"it needs about {si(needed, 'B')} on {device} and {si(free, 'B')} are free, "
            f"{si(needed - free, 'B')} too little (try a GPU, or --model small)"
        )
    if reason is not None and weights != "auto":
        raise ValueError(f"cannot time {name or 'this model'}: {reason}")
    if reason is None and weights == "auto" and device.type == "cpu" and shape.parameters > SLOW:
        reason = f"{count} take many minutes on a CPU; --weights random times them all the same"
    if reason is not None:
        return None, None, f"Latency not measured: {reason}."
    if weights == "pretrained" and name is None:
        raise ValueError("a bare configuration has no weights: use --weights random")
    if weights == "pretrained" or (weights == "auto" and name is not None and _is_here(name)):
        assert name is not None
        model, _ = load(
            name,
            device="auto" if places is not None else str(device),
            device_map=places,
            dtype=str(dtype).removeprefix("torch."),
            attn_implementation=attn_implementation,
            quantization=None if quantization is None else quantization.name,
        )
        return model, "pretrained", "Latency of the trained weights, on random prompts."
    if places is not None:
        check_fits(name or "this model", config, dtype, quantization, places)
    model = random_model(
        config, device="cpu" if places is not None else str(device), dtype=dtype, seed=seed,
        attn_implementation=attn_implementation, quantization=quantization,
    )  # fmt: skip
    if places is not None:
        model = dispatched(model, places)
    return model, "random", "Latency of random weights of the true shape, on random prompts."


def _is_here(name: str) -> bool:
    try:
        return in_cache(find(name))
    except ValueError:
        return False


def memory_needed(
    shape: Shape, work: Workload, dtype: torch.dtype, weights: int, *, eager: bool = False
) -> int:
    """Bytes to run the model untrimmed, about: `weights`, KV cache twice, activations of a layer.

    Eager attention also has its n x n scores, twice.
    """
    tokens = work.visual + work.text + work.new
    cache = 2 * shape.layers * shape.kv_heads * shape.head_size * work.batch * tokens
    layer = work.batch * tokens * (8 * shape.hidden + 3 * shape.intermediate)
    scores = 2 * work.batch * shape.heads * tokens**2 if eager else 0
    return weights + dtype.itemsize * (2 * cache + layer) + 4 * scores
