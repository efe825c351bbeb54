"""Models with random weights, for measuring without a download: they time as trained ones would.

Weights that are to be quantised are drawn one at a time, where they are wanted, so that no whole
model lies in memory first: transformers takes them for a checkpoint's.
"""

from __future__ import annotations

import copy
import zlib
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import AutoModelForImageTextToText, PreTrainedModel

from st3.families.meta import meta_model
from st3.families.parts import judge
from st3.inference.loading import find_device
from st3.inference.quantization import Quantization, transformers_config, try_on

_STD = 0.02


def random_model(
    config: Any,
    *,
    device: str = "auto",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    attn_implementation: str | None = None,
    quantization: Quantization | None = None,
) -> PreTrainedModel:
    """A model of this configuration with random weights: it times as a trained one would.

    Raises:
        ValueError: a family that does not fit, no such device, or one that does not compute with
            such a quantization.
    """
    judge(config)
    torch.manual_seed(seed)
    if quantization is not None:
        return _random_quantized(
            config, find_device(device), dtype, seed, attn_implementation, quantization
        )
    with torch.device(find_device(device)):
        model: Any = AutoModelForImageTextToText.from_config(
            copy.deepcopy(config),
            dtype=dtype,
            attn_implementation=attn_implementation,
            trust_remote_code=False,
        )
    model.eval()
    return cast(PreTrainedModel, model)


def _random_quantized(
    config: Any,
    device: torch.device,
    dtype: torch.dtype,
    seed: int,
    attn_implementation: str | None,
    quantization: Quantization,
) -> PreTrainedModel:
    try_on(quantization, device, dtype)
    empty = meta_model(config)
    model: Any = type(empty).from_pretrained(
        None,
        config=copy.deepcopy(config),
        state_dict={
            name: _Drawn(name, weight.shape, device, dtype, seed)
            for name, weight in empty.named_parameters()
        },
        dtype=dtype,
        attn_implementation=attn_implementation,
        quantization_config=transformers_config(empty, quantization, device, dtype),
        device_map={"": str(device)},
    )
    return cast(PreTrainedModel, model.eval())


@dataclass(frozen=True)
class _Drawn:
    """A tensor that does not exist yet: `[...]` draws it, as it would read a file's.

    Attributes:
        name: of the parameter; decides with `seed` what is drawn.
        shape, device, dtype: of the tensor.
    """

    name: str
    shape: torch.Size
    device: torch.device
    dtype: torch.dtype
    seed: int

    def __getitem__(self, _: Any) -> torch.Tensor:
        """The tensor: normal, but vectors are ones, and biases zeros."""
        made = torch.empty(self.shape, device=self.device, dtype=self.dtype)
        if self.name.endswith("bias"):
            return made.zero_()
        if len(self.shape) < 2:
            return made.fill_(1.0)
        generator = torch.Generator(self.device)
        generator.manual_seed(zlib.crc32(self.name.encode()) + self.seed)
        return made.normal_(std=_STD, generator=generator)
