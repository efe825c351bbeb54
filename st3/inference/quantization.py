"""Weights in few bits: the names, what each needs, and how a model gets them.

transformers quantises a checkpoint as it reads it, by bitsandbytes or torchao; `quantize` does the
same to a model in memory. What is converted is our choice: the linear layers of the decoder. Vision
tower, projector and LM head stay as they are: they are a small part of the bytes, and their errors
reach every token. Experts that are stacked into one tensor stay, too: they are no linear layers.
Neither package is imported here before one of its names is used.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from st3.families.parts import find_parts

_GROUPS = (128, 64, 32)
"""Weights that share a scale under torchao-int4: the most that divide every layer's input."""


@dataclass(frozen=True)
class Quantization:
    """A way to keep weights.

    Attributes:
        name: what users call it. `package`: whose it is.
        inputs, outputs: features that a linear layer must have a multiple of, or it stays.
    """

    name: str
    package: str
    inputs: int = 1
    outputs: int = 1

    def fits(self, linear: nn.Module) -> bool:
        """Whether a module is a linear layer that can be converted."""
        return (
            type(linear) is nn.Linear
            and not linear.in_features % self.inputs
            and not linear.out_features % self.outputs
        )


QUANTIZATIONS = {
    each.name: each
    for each in (
        Quantization("bnb-4bit", "bitsandbytes", inputs=64, outputs=32),
        Quantization("bnb-8bit", "bitsandbytes"),
        Quantization("torchao-int8", "torchao"),
        Quantization("torchao-int8-dynamic", "torchao"),
        Quantization("torchao-int4", "torchao", inputs=_GROUPS[-1], outputs=16),
    )
}
"""bnb-4bit: NF4, a scale for 64 weights; CPUs with bfloat16 instructions take no layers of other
sizes. bnb-8bit: LLM.int8(), activations in int8 as well, but for columns with an outlier in them.
torchao-int8: a scale for each output. torchao-int8-dynamic: activations in int8 as well, a scale
for each token. torchao-int4: a scale and a zero for 32 to 128 weights."""


def find_quantization(name: str) -> Quantization:
    """By its name, whose package must be installed.

    Raises:
        ValueError: no such name, or the package is missing.
    """
    if name not in QUANTIZATIONS:
        raise ValueError(f"unknown quantization {name!r}; known: {', '.join(QUANTIZATIONS)}")
    found = QUANTIZATIONS[name]
    check_package(found.package, name)
    return found


def check_package(package: str, what: str) -> None:
    """See that a package is installed.

    Raises:
        ValueError: it is not.
    """
    if importlib.util.find_spec(package) is None:
        raise ValueError(f'{what} needs {package}: pip install "st3[quantization]"')


def check_stored(config: Any, place: str, wanted: Quantization | None) -> bool:
    """Whether a checkpoint is quantised already, and then is to be loaded as it is.

    Args:
        config: of the checkpoint. `place`: its name, for the message.
        wanted: what was asked for.

    Raises:
        ValueError: another quantization was asked for, or its package is missing.
    """
    stored = getattr(config, "quantization_config", None)
    if stored is None:
        return False
    keys = stored if isinstance(stored, dict) else stored.to_dict()
    method = str(getattr(keys["quant_method"], "value", keys["quant_method"]))
    if wanted is not None:
        raise ValueError(f"{place} is quantised already, by {method}: leave the quantization out")
    if method in {each.package for each in QUANTIZATIONS.values()}:
        check_package(method, place)
    return True


def converted(model: Any, quantization: Quantization) -> dict[str, nn.Linear]:
    """Name -> linear layer of the decoder's layers that is converted.

    Args:
        model: one that fits, with weights or on the meta device.
        quantization: how.
    """
    inside = {module for layer in find_parts(model).layers for module in layer.modules()}
    return {
        name: module
        for name, module in model.named_modules()
        if module in inside and isinstance(module, nn.Linear) and quantization.fits(module)
    }


def _wanted(model: Any, quantization: Quantization) -> dict[str, nn.Linear]:
    """The same, if there are any.

    Raises:
        ValueError: there are none.
    """
    found = converted(model, quantization)
    if not found:
        raise ValueError(
            f"{quantization.name} converts nothing here: no linear layer of the decoder has inputs "
            f"and outputs in multiples of {quantization.inputs} and {quantization.outputs}"
        )
    return found


def group_size(linears: Sequence[nn.Linear]) -> int:
    """Weights of torchao-int4 that share a scale, the same in all layers of a model."""
    fits = (size for size in _GROUPS if not any(x.in_features % size for x in linears))
    return next(fits, _GROUPS[-1])


def transformers_config(
    model: Any, quantization: Quantization, device: torch.device, dtype: torch.dtype
) -> Any:
    """What `from_pretrained` takes as `quantization_config`.

    Args:
        model: the same on the meta device.
        quantization: how.
        device, dtype: where it computes, and in what.

    Raises:
        ValueError: nothing in the model can be converted.
    """
    chosen = _wanted(model, quantization)
    left = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name not in chosen
    ]
    if quantization.package == "torchao":
        from transformers import TorchAoConfig

        size = group_size(list(chosen.values()))
        return TorchAoConfig(_torchao(quantization, device, size), modules_to_not_convert=left)
    from transformers import BitsAndBytesConfig

    four = quantization.name == "bnb-4bit"
    return BitsAndBytesConfig(
        load_in_4bit=four, load_in_8bit=not four, bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype, llm_int8_skip_modules=left,
    )  # fmt: skip


def quantize(model: Any, quantization: Quantization) -> None:
    """Convert a live model's weights where they lie, as loading a checkpoint converts them.

    Args:
        model: one that fits; its linear layers are changed or replaced.
        quantization: how.

    Raises:
        ValueError: nothing in the model can be converted.
    """
    linears = _wanted(model, quantization)
    size = group_size(list(linears.values()))
    for name, linear in linears.items():
        model.set_submodule(name, _convert(linear, quantization, size))


def try_on(quantization: Quantization, device: torch.device, dtype: torch.dtype) -> None:
    """See that a device computes with such weights, by a small linear layer on it.

    Raises:
        ValueError: it does not; says why in the package's words.
    """
    try:
        with torch.no_grad():
            linear = nn.Linear(128, 64, bias=False, device=device, dtype=dtype)
            _convert(linear, quantization, 128)(torch.ones(2, 128, device=device, dtype=dtype))
    except Exception as error:  # packages tell it in many ways
        why = " ".join(str(error).split()) or type(error).__name__
        word = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"{quantization.name} does not work on {device} in {word} ({why}): "
            "try another quantization, dtype or device"
        ) from error


def _convert(linear: nn.Linear, quantization: Quantization, group: int) -> nn.Module:
    """A linear layer with its weights in few bits, on its device."""
    device, dtype = linear.weight.device, linear.weight.dtype
    if quantization.package == "torchao":
        from torchao.quantization import quantize_

        quantize_(linear, _torchao(quantization, device, group))
        return linear
    import bitsandbytes as bnb

    shape = linear.in_features, linear.out_features, linear.bias is not None
    weight = linear.weight.data
    if quantization.name == "bnb-4bit":
        made = bnb.nn.Linear4bit(
            *shape, compute_dtype=dtype, compress_statistics=False, quant_type="nf4", device="meta"
        )
        made.weight = bnb.nn.Params4bit(
            weight, requires_grad=False, compress_statistics=False, quant_type="nf4", module=made
        )
    else:
        made = bnb.nn.Linear8bitLt(*shape, has_fp16_weights=False, threshold=6.0, device="meta")
        made.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    made.weight = made.weight.to(device)
    made.bias = linear.bias
    done: nn.Module = made.requires_grad_(False).eval()
    return done


def _torchao(quantization: Quantization, device: torch.device, group: int) -> Any:
    """torchao's own configuration. Inductor's settings, which are global, stay as they are."""
    from torchao import quantization as ao
    from torchao.utils import should_reduce_range

    if quantization.name == "torchao-int8":
        return ao.Int8WeightOnlyConfig(set_inductor_config=False)
    if quantization.name == "torchao-int8-dynamic":
        return ao.Int8DynamicActivationInt8WeightConfig(
            set_inductor_config=False, reduce_range=should_reduce_range(device)
        )
    if device.type == "cpu":  # torchao keeps the only packing for it among its prototypes
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

        return PrototypeInt4WeightOnlyConfig(group_size=group, set_inductor_config=False)
    return ao.Int4WeightOnlyConfig(
        group_size=group, int4_packing_format="tile_packed_to_4d", set_inductor_config=False
    )
