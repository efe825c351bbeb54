"""Which kernel multiplies by the weights of linear layers on a CPU; no weight is copied for it.

A decode step takes as long as reading the weights does, and torch's product with one row reads them
at a fraction of what memory gives. Written as a sum, it becomes a loop of the compiler's that reads
them as they lie. With more rows torch calls MKL in float32, which some processors run at half their
speed or less; oneDNN, which torch has for bfloat16, takes float32 weights as they lie, too. Which
of the two is faster is measured, once in a process.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_aten = torch.ops.aten
# An operator of our own: of oneDNN's inductor asks that weights be packed, which copies them.
_OWN = torch.library.Library("st3", "FRAGMENT")
_OWN.define("linear(Tensor states, Tensor weight) -> Tensor")
_FASTER = 1.2  # by so much oneDNN must be faster: what is equal must not change by chance
_ROWS, _WIDTH, _ROUNDS = 128, 768, 5  # of the products that are timed


def products() -> dict[Any, Callable[..., Any]]:
    """What a compiler for a CPU is to make of products: by operator, as functions of tensors.

    They return NotImplemented for what is to stay as it is.
    """
    onednn_is_faster(torch.get_num_threads())  # a trace could not measure it
    return {_aten.mm.default: _product, _aten.addmm.default: _product_and_bias}


def fast_linears(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Inside it linear layers of these weights are multiplied by the faster kernel.

    For work without gradients and without autocast.
    """
    narrow = device.type != "cpu" or dtype != torch.float32
    return nullcontext() if narrow or not onednn_is_faster(torch.get_num_threads()) else ByOneDnn()


class ByOneDnn(TorchFunctionMode):
    """Inside it oneDNN multiplies where it takes the weights as they lie."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is functional.linear and not kwargs and _takes(*args[:2]):
            return _onednn(*args)
        return func(*args, **(kwargs or {}))


def _takes(states: torch.Tensor, weight: torch.Tensor) -> bool:
    return (
        type(weight) in (torch.Tensor, torch.nn.Parameter)
        and weight.device.type == "cpu"
        and states.dtype == weight.dtype == torch.float32
        and weight.is_contiguous()
    )


def _onednn(
    states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """`functional.linear` by oneDNN."""
    found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")
    return found


_OWN.impl("linear", lambda *tensors: _onednn(*tensors), "CPU")
_OWN.impl("linear", lambda x, weight: x.new_empty(x.shape[0], weight.shape[0]), "Meta")


def _product(states: torch.Tensor, turned: torch.Tensor, **more: Any) -> Any:
    """[rows, k] x [k, n], where `turned` is a weight [n, k] seen the other way round."""
    if more or turned.stride(0) != 1 or not turned.dtype.is_floating_point:
        return NotImplemented
    weight = turned.t()
    if isinstance(states.shape[0], int) and states.shape[0] == 1:
        wide = torch.promote_types(states.dtype, torch.float32)
        return (weight.to(wide) * states.to(wide)).sum(-1)[None].to(states.dtype)
    if states.dtype == torch.float32 and onednn_is_faster(torch.get_num_threads()):
        return torch.ops.st3.linear(states, weight)
    return NotImplemented


def _product_and_bias(
    bias: torch.Tensor, states: torch.Tensor, turned: torch.Tensor, **factors: Any
) -> Any:
    found = _product(states, turned, **factors)
    return found if found is NotImplemented else found + bias


@functools.cache
def onednn_is_faster(threads: int) -> bool:
    """Whether oneDNN multiplies in float32 faster than what torch calls, on so many threads."""
    if not torch.backends.mkldnn.is_available():
        return False
    with torch.no_grad():
        states, weight = torch.ones(_ROWS, _WIDTH), torch.ones(_WIDTH, _WIDTH)
        ways: tuple[Callable[..., Any], ...] = functional.linear, _onednn
        times: list[list[float]] = [[], []]
        for _ in range(_ROUNDS):
            for way, taken in zip(ways, times, strict=True):
                began = time.perf_counter()
                way(states, weight)
                taken.append(time.perf_counter() - began)
    torchs, onednns = map(min, times)
    return torchs > _FASTER * onednns
