"""Two devices on one CPU: tensors that claim a device, and refuse to meet those of another.

What a machine with two GPUs would refuse is refused here: an operation on tensors of two devices.
The arithmetic is the CPU's. `DEVICES` can be had inside `with Placing():` alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICES = "mtia:0", "mtia:1"
"""Of a kind that torch knows by name, and that is never there."""
_OFF = {"pin_memory", "non_blocking"}


class Placed(torch.Tensor):
    """A tensor that claims to lie on a device; `inner` is what it stands for."""

    inner: torch.Tensor
    claimed: torch.device

    @staticmethod
    def __new__(cls, inner: Any, device: Any = None, requires_grad: bool = False) -> Any:
        if isinstance(inner, Placed):  # a parameter is made of it
            inner, device = inner.inner, inner.claimed
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device="cpu", requires_grad=requires_grad,
        )  # fmt: skip
        made.inner, made.claimed = inner, torch.device(device)
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.claimed

    def __repr__(self, **_: Any) -> str:
        return f"Placed({self.inner!r}, {self.claimed})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func._schema.name
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        # A number may lie on the CPU, as everywhere in torch.
        where = {x.device for x in given if x.dim() or isinstance(x, Placed)}
        if name.startswith("aten::index"):  # indices may
            where = {x.device for x in given if isinstance(x, Placed)}
        if len(where) > 1 and name != "aten::copy_":
            raise RuntimeError(f"{name} on several devices: {sorted(map(str, where))}")
        result = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
        if name.endswith("_") or kwargs.get("out") is not None:
            return kwargs.get("out", args[0])
        own = next(x.claimed for x in given if isinstance(x, Placed))
        return tree_map(lambda x: Placed(x, own) if isinstance(x, torch.Tensor) else x, result)


class Placing(TorchFunctionMode):
    """Where tensors are made on, or moved to, one of `DEVICES`, they claim it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {key: value for key, value in (kwargs or {}).items() if key not in _OFF}
        given, where = list(args), kwargs.pop("device", None)
        if func is torch.Tensor.tolist:
            return func(_inner(args[0]))
        if func is torch.tensor:
            given = tree_map(_inner, given)
        if func is torch.Tensor.cpu:
            func, where = torch.Tensor.to, "cpu"
        if func is torch.Tensor.to and len(given) > 1:
            if isinstance(given[1], torch.Tensor):
                where, given[1] = given[1].device, given[1].dtype
            elif not isinstance(given[1], torch.dtype):
                where, given[1:] = given[1], [x for x in given[2:] if isinstance(x, torch.dtype)]
        if where is None or torch.device(where).type == "meta":
            return func(*given, **kwargs, **({} if where is None else {"device": where}))
        where = torch.device(where)
        moved = func is torch.Tensor.to
        result = func(*given, **kwargs) if not moved or kwargs or len(given) > 1 else given[0]
        if result.device == where:
            return result
        inner = _inner(result)
        inner = inner.clone() if moved else inner
        return inner if where.type == "cpu" else Placed(inner, where)


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, Placed) else value
