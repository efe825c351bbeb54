"""From a name to a model and its processor: `demo`, `7b`, `13b`, a Hub id or a local folder.

One path for all of them: transformers' own `from_pretrained`, safetensors only. `random_model`
makes a model of the same shape with random weights, for measuring without a download.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from transformers import (
    AutoModelForImageTextToText,
    GenerationConfig,
    PreTrainedModel,
    ProcessorMixin,
)

from st3.families.meta import meta_model
from st3.families.parts import judge
from st3.inference.checkpoints import Source, check_weights, fetching, find
from st3.inference.configs import load_config
from st3.inference.processors import load_processor

DTYPES = ("auto", "float32", "bfloat16", "float16")
_LARGE = 1_000_000_000  # parameters above which fp32 on a CPU is a waste of memory


def load(
    name: str = "demo",
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    attn_implementation: str | None = None,
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load a model for inference, and its processor.

    Args:
        name: `demo` (packaged), `7b`, `13b`, a Hub id with an optional `@revision`, or a folder.
        device: `auto` (CUDA where there is one), or any torch device.
        dtype: one of `DTYPES`; `auto` is the checkpoint's own on a GPU, and on a CPU fp32 for
            models below a billion parameters and bf16 above.
        revision: branch, tag or commit on the Hub.
        attn_implementation: passed to transformers; its default (SDPA) if None.

    Raises:
        ValueError: a name, device, dtype, family or checkpoint that cannot be used.
        OSError: not found, or not reachable.
    """
    source = find(name, revision)
    config = load_config(source)
    chosen = find_device(device)
    numbers = find_dtype(dtype, chosen, config)
    check_weights(source)
    with fetching(source):
        processor = load_processor(source, config)
    model = load_weights(
        source, config, device=chosen, dtype=numbers, attn_implementation=attn_implementation
    )
    return model, processor


def load_weights(
    source: Source,
    config: Any,
    *,
    device: torch.device,
    dtype: torch.dtype,
    attn_implementation: str | None = None,
) -> PreTrainedModel:
    """A checkpoint's model alone, for inference.

    Args:
        source: of the checkpoint.
        config: the model's.
        device, dtype: where and in what.
        attn_implementation: as for `load`.

    Raises:
        ValueError: no weights, not all of them, or a generation_config.json that makes no sense.
        OSError: not found, or not reachable.
    """
    check_weights(source)
    with fetching(source), _reading(source):
        _check_generation(source)
        model, report = cast(
            tuple[Any, Any],
            AutoModelForImageTextToText.from_pretrained(
                source.place,
                revision=source.revision,
                config=config,
                dtype=dtype,
                attn_implementation=attn_implementation,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            ),
        )
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(
            f"{source.place} lacks {len(missing)} weights of a {config.model_type} model, "
            f"{missing[0]} among them: the checkpoint is incomplete"
        )
    return cast(PreTrainedModel, model.to(device).eval())


@contextmanager
def _reading(source: Source) -> Iterator[None]:
    """Name the checkpoint whose file is damaged."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        raise ValueError(
            f"{source.place}: its weights are damaged, fetch them again ({error})"
        ) from error


def _check_generation(source: Source) -> None:
    """See that what a checkpoint asks of `generate` makes sense, before its weights are read.

    Raises:
        ValueError: it does not.
    """
    try:
        GenerationConfig.from_pretrained(source.place, revision=source.revision or "main")
    except OSError:
        return  # it has none, or none that transformers reads: then it asks for nothing
    except Exception as error:
        raise ValueError(
            f"{source.place}: generation_config.json makes no sense, mend it or delete it: {error}"
        ) from error


def random_model(
    config: Any,
    *,
    device: str = "auto",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    attn_implementation: str | None = None,
) -> PreTrainedModel:
    """A model of this configuration with random weights: it times as a trained one would.

    Raises:
        ValueError: a family that does not fit, or no such device.
    """
    judge(config)
    torch.manual_seed(seed)
    with torch.device(find_device(device)):
        model: Any = AutoModelForImageTextToText.from_config(
            copy.deepcopy(config),
            dtype=dtype,
            attn_implementation=attn_implementation,
            trust_remote_code=False,
        )
    model.eval()
    return cast(PreTrainedModel, model)


def find_device(device: str) -> torch.device:
    """`auto` -> CUDA where there is one.

    Raises:
        ValueError: no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f"unknown device {device!r}: give auto, cpu or cuda") from None
    if chosen.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (chosen.index or 0) >= count:
            has = f"{count} of them" if count else "none"
            raise ValueError(f"no device {device!r}: torch sees {has}; use the device cpu")
    return chosen


def find_dtype(dtype: str, device: torch.device, config: Any) -> torch.dtype:
    """The dtype to load in; see `load`.

    Raises:
        ValueError: not a dtype of ours, or one that the device lacks.
    """
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; known: {', '.join(DTYPES)}")
    if dtype == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ValueError("this GPU has no bfloat16: use the dtype float16")
    if dtype != "auto":
        chosen: torch.dtype = getattr(torch, dtype)
        return chosen
    if device.type == "cuda":
        own = config.dtype or config.get_text_config().dtype
        if isinstance(own, torch.dtype):
            return own
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    count = meta_model(config).num_parameters()
    return torch.float32 if count < _LARGE else torch.bfloat16
