"""Counting operations while real inputs meet a model on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

_NUMBERS = 100_000  # of a tensor that tells inputs apart
_OWN_NUMBER = ("layer_idx", "layer_id", "index")


class Counting:
    """Counts multiply-accumulates while real inputs meet a model on the meta device.

    Blocks of a list that get the same run once: a tower with windows would take minutes.
    """

    def __init__(self, tower: nn.Module) -> None:
        self._tower = tower
        self._flops = FlopCounterMode(display=False)
        self._meeting = _Meeting()
        self._known: dict[Any, tuple[int, Any]] = {}
        self._saved = 0
        self._blocks = [
            block
            for blocks in tower.modules()
            if isinstance(blocks, nn.ModuleList)
            for block in blocks
        ]
        self._marks: list[int] = []

    @property
    def total(self) -> int:
        """All of them so far."""
        return int(self._flops.get_total_flops()) // 2 + self._saved

    @property
    def inside(self) -> int:
        """Those of the tower."""
        return sum(self._marks[1::2]) - sum(self._marks[::2])

    def __enter__(self) -> Counting:
        def mark(*_: Any) -> None:
            self._marks.append(self.total)

        self._hooks = [
            self._tower.register_forward_pre_hook(mark),
            self._tower.register_forward_hook(mark),
        ]
        for block in self._blocks:
            block.forward = partial(self._once, block, block.forward)
        self._flops.__enter__()
        self._meeting.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._meeting.__exit__(*error)
        self._flops.__exit__(*error)
        for hook in self._hooks:
            hook.remove()
        for block in self._blocks:
            del block.forward

    def _once(self, block: nn.Module, forward: Callable[..., Any], *args: Any, **more: Any) -> Any:
        key = _kind(block), *map(_look, tree_leaves((args, more)))
        if key in self._known:
            macs, out = self._known[key]
            self._saved += macs
            return out
        before = self.total
        out = forward(*args, **more)
        self._known[key] = self.total - before, out
        return out


class _Meeting(TorchDispatchMode):
    """Where real tensors meet those on the meta device, they become such, too.

    Whether a mask has holes cannot be asked there: a picture's has none.
    """

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default:
            asked = args[0]
            if asked.is_meta and asked.dtype == torch.bool:
                return True
        given = (tuple(args), kwargs or {})
        devices = {x.device.type for x in tree_leaves(given) if isinstance(x, torch.Tensor)}
        if "meta" in devices and len(devices) > 1:
            given = tree_map(lambda x: x.to("meta") if isinstance(x, torch.Tensor) else x, given)
        return function(*given[0], **given[1])


def _kind(block: nn.Module) -> Any:
    """What tells two blocks of a list apart, but for their number in it."""
    plain = (bool, int, float, str, tuple)
    return type(block), *(
        (name, value)
        for part in block.modules()
        for name, value in vars(part).items()
        if isinstance(value, plain) and name not in _OWN_NUMBER
    )


def _look(value: Any) -> Any:
    """What tells two inputs apart: the shape of a tensor, and its numbers if it is small."""
    if not isinstance(value, torch.Tensor):
        return repr(value)
    look = str(value.dtype), *value.shape
    if value.device.type == "meta" or value.numel() > _NUMBERS:
        return look
    return *look, value.numpy(force=True).tobytes() if value.dtype != torch.bfloat16 else 0
