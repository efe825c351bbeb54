"""Bytes of weights in their bits: predicted from a configuration, or counted in a live model.

Predicted before anything is read, so that a model which cannot fit is refused at once. Scales,
zeros and tables of a quantisation count, and so do buffers; tied weights count once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from st3.families.meta import meta_model
from st3.families.parts import find_parts, layer_names
from st3.inference.device_map import DISK, place_of
from st3.inference.quantization import QUANTIZATIONS, Quantization, converted, group_size
from st3.machine import free_memory
from st3.units import si

_BLOCK = 64  # weights that share a scale under bnb-4bit
_TABLE = 16 * 4  # bytes of its table of values, one a layer
_TILE = (1024, 8)  # in and out features to which torchao pads int4 weights for CUDA


def predicted_bytes(
    config: Any,
    dtype: torch.dtype,
    quantization: Quantization | None = None,
    device: torch.device | None = None,
) -> dict[str, int]:
    """Bytes of every parameter and buffer of a model, by its name; nothing is loaded.

    Args:
        config: of the model.
        dtype: of what is not converted.
        quantization: how the others are kept; None: in `dtype`, too.
        device: where; torchao-int4 packs otherwise on a CPU than on CUDA. A CPU if None.

    Raises:
        ValueError: the configuration builds no model that fits.
    """
    model = meta_model(config)  # in bfloat16, whatever `dtype` is
    chosen = {} if quantization is None else converted(model, quantization)
    group = group_size(list(chosen.values()))
    wide = _kept_wide(model, dtype)
    found = {}
    for name, tensor in _tensors(model):
        linear = chosen.get(name.removesuffix(".weight"))
        if linear is not None and quantization is not None:
            found[name] = _linear_bytes(
                linear, quantization, dtype, group, device or torch.device("cpu")
            )
        elif any(part in name for part in wide):
            found[name] = 4 * tensor.numel()
        else:
            follows = tensor.dtype == torch.bfloat16  # buffers such as scales follow, too
            found[name] = tensor.numel() * (dtype if follows else tensor.dtype).itemsize
    return found


def placed_bytes(
    config: Any,
    dtype: torch.dtype,
    quantization: Quantization | None,
    places: Mapping[str, torch.device],
) -> dict[torch.device, int]:
    """The same by device, `DISK` among them.

    Args:
        config, dtype, quantization: as for `predicted_bytes`.
        places: prefix of names -> device, see `places_of`.
    """
    found = {}
    for device in sorted({*places.values()}, key=str):
        sizes = predicted_bytes(config, dtype, quantization, device)
        found[device] = sum(n for name, n in sizes.items() if place_of(name, places) == device)
    return found


def saved_bytes(
    config: Any, dtype: torch.dtype, quantization: Quantization | None, device: torch.device | None
) -> list[int]:
    """By how many bytes the weights of each decoder layer are less than in `dtype`.

    Args:
        config, dtype, quantization, device: as for `predicted_bytes`.
    """
    model = meta_model(config)
    if quantization is None:
        return [0] * len(find_parts(model).layers)
    wide = predicted_bytes(config, dtype)
    narrow = predicted_bytes(config, dtype, quantization, device)
    return [
        sum(size - narrow[key] for key, size in wide.items() if key.startswith(f"{name}."))
        for name in layer_names(model)
    ]


def live_bytes(model: Any) -> dict[str, int]:
    """Bytes of a live model's weights on each device; "offloaded" are those that wait elsewhere.

    Args:
        model: in whatever bits its weights are.
    """
    found: dict[str, int] = defaultdict(int)
    seen: set[Any] = set()
    for module in model.modules():
        for held in (*module._parameters.values(), *module._buffers.values()):
            for number, tensor in enumerate(() if held is None else _pieces(held, module)):
                away = tensor.device.type == "meta"
                place: Any = tensor.data_ptr(), tensor.numel(), tensor.dtype
                if away:  # which has no addresses
                    place = id(held), number
                key = tensor.device, place
                if key not in seen:
                    seen.add(key)
                    where = "offloaded" if away else str(tensor.device)
                    found[where] += tensor.numel() * tensor.element_size()
    return dict(found)


def check_fits(
    name: str,
    config: Any,
    dtype: torch.dtype,
    quantization: Quantization | None,
    places: Mapping[str, torch.device],
) -> None:
    """See that weights alone fit into what is free, before they are read.

    Args:
        name: of the model, for the message.
        config: of it.
        dtype, quantization: what it is kept in.
        places: prefix of names -> device, see `places_of`; {"": device} is all on one.

    Raises:
        ValueError: they do not; says by how much, and what would fit.
    """
    for device, needed in placed_bytes(config, dtype, quantization, places).items():
        if device == DISK:
            continue
        free = free_memory(device)
        if needed > free:
            word = str(dtype).removeprefix("torch.")
            how = word if quantization is None else f"{quantization.name} and {word}"
            raise ValueError(
                f"{name} does not fit: its weights alone need {si(needed, 'B')} on {device} in "
                f"{how}, {si(free, 'B')} are free, {si(needed - free, 'B')} too little: "
                f"{_what_fits(config, dtype, device, free, len(places) > 1)}"
            )


def _what_fits(
    config: Any, dtype: torch.dtype, device: torch.device, free: int, mapped: bool
) -> str:
    """What to try, the widest weights first."""
    if mapped:
        return "give it less in the device map"
    wide = [("dtype bfloat16", None, torch.bfloat16)] if dtype == torch.float32 else []
    ways = [*wide, *((f"quantization {n}", q, dtype) for n, q in _NARROWER)]
    for what, quantization, numbers in ways:
        size = sum(predicted_bytes(config, numbers, quantization, device).values())
        if size <= free:
            return f"{what} would need {si(size, 'B')}; or spread it with a device map"
    return "no quantization would; take a smaller model, or spread it with a device map"


_NARROWER = [
    (name, QUANTIZATIONS[name]) for name in ("torchao-int8", "bnb-8bit", "bnb-4bit", "torchao-int4")
]


def _linear_bytes(
    linear: nn.Linear, quantization: Quantization, dtype: torch.dtype, group: int,
    device: torch.device,
) -> int:  # fmt: skip
    """Of its weight and what belongs to it, as loaded."""
    inputs, outputs = linear.in_features, linear.out_features
    count = inputs * outputs
    if quantization.name == "bnb-4bit":
        return count // 2 + 4 * (count // _BLOCK) + _TABLE
    if quantization.name == "bnb-8bit":
        return count + 4 * outputs
    if quantization.name != "torchao-int4":
        return count + (4 + 1) * outputs  # a scale and a zero
    if device.type != "cpu":
        inputs, outputs = (
            -(-n // size) * size for n, size in zip((inputs, outputs), _TILE, strict=True)
        )
    return inputs * outputs // 2 + 2 * dtype.itemsize * (inputs // group) * outputs


def _kept_wide(model: Any, dtype: torch.dtype) -> set[str]:
    """Parts of names that transformers keeps in float32 in a half precision."""
    wide = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    if dtype == torch.float16:
        wide |= set(getattr(model, "_keep_in_fp32_modules", None) or ())
    return wide if dtype.itemsize == 2 else set()


def _tensors(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers, each once."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def _pieces(tensor: Any, module: Any) -> Iterator[torch.Tensor]:
    """The plain tensors that a weight is made of, whoever quantised it."""
    if hasattr(tensor, "__tensor_flatten__"):
        inside = (getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])
        for piece in inside:  # a tensor-parallel one has its processes among them
            if isinstance(piece, torch.Tensor):
                yield from _pieces(piece, module)
        return
    yield tensor.data
    state: Any = getattr(tensor, "quant_state", None)
    if state is not None:  # bnb-4bit, which may keep its scales in few bits, too
        for level in (state, state.state2):
            if level is not None:
                yield from (x for x in (level.absmax, level.code) if x is not None)
        if state.offset is not None:
            yield state.offset
    if type(tensor).__name__ == "Int8Params":  # bnb-8bit hands its scales on at first use
        scales = tensor.SCB if tensor.SCB is not None else module.state.SCB
        if scales is not None:
            yield scales
