"""From a name to a model and its processor: `demo`, `7b`, `13b`, a Hub id or a local folder.

One path for all of them: transformers' own `from_pretrained`, safetensors only. What cannot be is
refused before weights are read: bits, devices and memory are looked at first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
from st3.inference import parallel
from st3.inference.checkpoints import Source, check_weights, fetching, find
from st3.inference.configs import load_config
from st3.inference.device_map import DISK, computes_on, first_device, places_of
from st3.inference.processors import load_processor
from st3.inference.quantization import (
    Quantization,
    check_stored,
    find_quantization,
    transformers_config,
    try_on,
)
from st3.inference.weights import check_fits
from st3.machine import gpu_count

DTYPES = ("auto", "float32", "bfloat16", "float16")
_LARGE = 1_000_000_000  # parameters above which fp32 on a CPU is a waste of memory


def load(
    name: str = "demo",
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    attn_implementation: str | None = None,
    quantization: str | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    tensor_parallel: bool = False,
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load a model for inference, and its processor.

    Args:
        name: `demo` (packaged), `7b`, `13b`, a Hub id with an optional `@revision`, or a folder.
        device: `auto` (CUDA where there is one), or any torch device.
        dtype: one of `DTYPES`; `auto` is the checkpoint's own on a GPU, and on a CPU fp32 for
            models below a billion parameters and bf16 above.
        revision: branch, tag or commit on the Hub.
        attn_implementation: passed to transformers; its default (SDPA) if None.
        quantization: one of `st3.inference.quantization.QUANTIZATIONS`: linear layers of the
            decoder are kept in few bits, the rest in `dtype`.
        device_map: in place of `device`: one of `STRATEGIES`, or module -> device.
        tensor_parallel: over all processes that torchrun started, each of which calls this.

    Raises:
        ValueError: a name, device, dtype, quantization, device map, family or checkpoint that
            cannot be used, or weights that do not fit into memory.
        OSError: not found, or not reachable.
    """
    if device_map is not None and device != "auto":
        raise ValueError("device and device_map both say where weights lie: give one of them")
    if tensor_parallel and (quantization, device_map, device) != (None, None, "auto"):
        raise ValueError(
            "tensor parallelism takes a device for each process, and no quantization or device map "
            "yet: leave these out"
        )
    source = find(name, revision)
    how = None if quantization is None else find_quantization(quantization)
    config = load_config(source)
    places = None if device_map is None else places_of(device_map, config)
    check_whole(how, places)
    chosen = find_device(device) if places is None else first_device(places)
    numbers = find_dtype(dtype, chosen, config, how)
    check_weights(source)
    with fetching(source):
        processor = load_processor(source, config)
    model = load_weights(
        source, config, device=chosen, dtype=numbers, attn_implementation=attn_implementation,
        quantization=how, device_map=places, tensor_parallel=tensor_parallel,
    )  # fmt: skip
    return model, processor


def load_weights(
    source: Source,
    config: Any,
    *,
    device: torch.device,
    dtype: torch.dtype,
    attn_implementation: str | None = None,
    quantization: Quantization | None = None,
    device_map: str | Mapping[str, torch.device] | None = None,
    tensor_parallel: bool = False,
) -> PreTrainedModel:
    """A checkpoint's model alone, for inference.

    Args:
        source: of the checkpoint.
        config: the model's.
        device, dtype: where and in what.
        attn_implementation: as for `load`.
        quantization: of linear layers of the decoder; one that a checkpoint has already is kept.
        device_map: a strategy, or what `places_of` found; None: all on `device`.
        tensor_parallel: over all processes, in place of both.

    Raises:
        ValueError: no weights, not all of them, a generation_config.json that makes no sense, a
            quantization that does not go with the checkpoint or the device, or too little memory.
        OSError: not found, or not reachable.
    """
    check_weights(source)
    stored = check_stored(config, source.place, quantization)
    places = {"": device} if device_map is None else device_map
    devices = {device}
    options: dict[str, Any] = {"device_map": places}
    if tensor_parallel:
        options = {"distributed_config": parallel.tensor_parallel(config)}
    elif not isinstance(places, str):
        devices = {*places.values()} - {DISK}
        options["device_map"] = {n: "disk" if d == DISK else str(d) for n, d in places.items()}
        if not stored:
            check_fits(source.place, config, dtype, quantization, places)
    if quantization is not None:
        for where in devices:
            try_on(quantization, where, dtype)
        options["quantization_config"] = transformers_config(
            meta_model(config), quantization, device, dtype
        )
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
                **options,
            ),
        )
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(
            f"{source.place} lacks {len(missing)} weights of a {config.model_type} model, "
            f"{missing[0]} among them: the checkpoint is incomplete"
        )
    return cast(PreTrainedModel, model.eval())


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


def check_whole(
    quantization: Quantization | None, places: str | Mapping[str, torch.device] | None
) -> None:
    """See that weights in few bits lie where they compute: they cannot be brought for each call.

    Raises:
        ValueError: a map lets some wait on a disk, or beside a GPU in main memory.
    """
    if quantization is None or places is None or isinstance(places, str):
        return
    if any(computes_on(where, places) != where for where in places.values()):
        raise ValueError(
            f"weights in {quantization.name} cannot wait on a disk or, beside a GPU, in main "
            "memory: leave the quantization out, or give the device map devices that compute"
        )


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
        count = gpu_count()
        if (chosen.index or 0) >= count:
            has = f"{count} of them" if count else "none"
            raise ValueError(f"no device {device!r}: torch sees {has}; use the device cpu")
    return chosen


def find_dtype(
    dtype: str, device: torch.device, config: Any, quantization: Quantization | None = None
) -> torch.dtype:
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
        if quantization is not None and quantization.name == "torchao-int4":
            return torch.bfloat16  # its kernel knows no other
        own = config.dtype or config.get_text_config().dtype
        if isinstance(own, torch.dtype):
            return own
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    count = meta_model(config).num_parameters()
    return torch.float32 if count < _LARGE else torch.bfloat16
