"""What a model is, so that two looks at it tell whether anything was left behind."""

from __future__ import annotations

import threading
from typing import Any

import torch

_HOOKS = (
    "_forward_pre_hooks", "_forward_hooks", "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called", "_backward_hooks",
    "_backward_pre_hooks", "_state_dict_hooks",
)  # fmt: skip
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_SAID = 3


class _Same:
    """Equal to itself alone; keeps what it holds alive, so that no address is used again."""

    def __init__(self, held: Any) -> None:
        self.held = held

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.held is other.held

    __hash__ = None  # type: ignore[assignment]


def footprint(model: Any) -> dict[str, Any]:
    """Fact -> value: configurations, hooks, forwards, and which tensors the weights are.

    Weights are known by identity and by torch's own count of changes in place, which costs nothing;
    see `checksum` for their numbers.
    """
    facts: dict[str, Any] = {
        "its configuration": model.config.to_json_string(use_diff=False),
        "its generation_config": str(model.generation_config.to_dict()),
        "threading.Thread.start": _Same(threading.Thread.start),
    }
    for name, module in model.named_modules():
        where = f" of {name}" if name else " of the model"
        facts[f"the class{where}"] = type(module)
        facts[f"the mode{where}"] = module.training
        facts[f"the forward{where}"] = _Same(vars(module).get("forward"))
        facts[f"the hooks{where}"] = {
            kind: [(key, _Same(hook)) for key, hook in (getattr(module, kind, None) or {}).items()]
            for kind in _HOOKS
        }
        config = getattr(module, "config", None)
        if config is not None:
            backend = getattr(config, "_attn_implementation", None)
            facts[f"the configuration{where}"] = _Same(config), backend
    for kind, tensors in (
        ("parameter", model.named_parameters()),
        ("buffer", model.named_buffers()),
    ):
        for name, tensor in tensors:
            look = tuple(tensor.shape), tensor.dtype, tensor.device, tensor.data_ptr()
            facts[f"the {kind} {name}"] = _Same(tensor), look, tensor._version
    return facts


def differences(before: dict[str, Any], after: dict[str, Any]) -> str:
    """What is not as it was, in words; empty where all is."""
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    more = f" and {len(names) - _SAID} more" if len(names) > _SAID else ""
    return ", ".join(names[:_SAID]) + more


def checksum(model: Any) -> int:
    """The sum of all weights' bits, read as whole numbers."""
    total = 0
    for tensor in model.parameters():
        plain = torch.view_as_real(tensor) if tensor.is_complex() else tensor.detach()
        total += int(plain.view(_BITS[plain.itemsize]).sum(dtype=torch.int64))
    return total
