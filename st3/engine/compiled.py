"""A module's call as compiled code, which modules that compute alike share.

A module is traced by itself, with its weights and all tensors that it is given as inputs; sizes
that change from prompt to prompt are left open. Modules whose traces read the same share one piece
of code. So a decoder of 32 equal layers is compiled in seconds, once for prompts and answers of all
lengths, and nothing checks at each step what a module may have become. torch keeps code on disk and
finds it there in the next process.
"""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType
from typing import Any, Protocol

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

Tensors = list[torch.Tensor]
Call = Callable[[nn.Module, Tensors], Any]
Open = Sequence[frozenset[int]]
"""Of each tensor of a call, the dimensions whose size is left open."""

_LOCK = threading.RLock()
_SCALARS = (bool, int, float, str, type(None), torch.dtype)


class Maker(Protocol):
    """A compiler, for traces.

    Attributes:
        name: tells its code from others'.
        by_sums: whether it is given attention written as sums.
    """

    name: str
    by_sums: bool

    def ways(self) -> dict[Any, Callable[..., Any]]:
        """What a trace is to make of operators, as functions of tensors."""

    def make(
        self, graph: fx.GraphModule, stand_ins: Sequence[Any], weights: int
    ) -> Callable[[nn.Module, Tensors], Callable[..., Any]]:
        """What gives code for a module and its weights, the last `weights` inputs of the trace."""


@dataclass(frozen=True)
class Code:
    """Compiled code.

    Attributes:
        bind: a module and its weights -> (tensors -> sequence of tensors).
        alone: whether one tensor is meant, and not a tuple.
        fits: whether tensors have sizes for which it is right.
    """

    bind: Callable[[nn.Module, Tensors], Callable[..., Any]]
    alone: bool
    fits: Callable[[Tensors], bool]


class Piece:
    """Code, which may be other modules', too, with the weights of one."""

    def __init__(self, code: Code, module: nn.Module, weights: Tensors) -> None:
        self.run, self.alone = code.bind(module, weights), code.alone

    def __call__(self, tensors: Tensors) -> Any:
        """What the call that was compiled returns."""
        found = self.run(*tensors)
        return found[0] if self.alone else tuple(found)


_CODES: dict[Any, Code] = {}
_TRACED: weakref.WeakKeyDictionary[nn.Module, dict[Any, list[Code]]] = weakref.WeakKeyDictionary()


def compiled() -> int:
    """How many pieces of code have been compiled in this process."""
    return len(_CODES)


def forget() -> None:
    """Compile all anew from now on; pieces that are held go on."""
    with _LOCK:
        _CODES.clear()
        _TRACED.clear()


def piece(
    maker: Maker, module: nn.Module, call: Call, tensors: Tensors, opened: Open, kind: Any
) -> Piece:
    """Compiled code for a call of a module, made only where there is none yet.

    Args:
        maker: compiles what has been traced.
        module: on one device.
        call: makes the call of a module like it, with such tensors, and returns what it returns: a
            tensor, or a tuple of them. It may write into tensors.
        tensors: of the call. It may read no others but the module's parameters and buffers.
        opened: of each of them.
        kind: tells calls apart that differ in other things than the tensors' shapes; hashable.

    Raises:
        NotImplementedError: hooks of others on modules below it.
        Exception: whatever tracing and compiling raise.
    """
    _refuse_hooks(module)
    named = dict(module.named_parameters()) | dict(module.named_buffers())
    parts = {id(tensor): _taken_apart(tensor) for tensor in named.values()}
    weights = [plain for inside, _ in parts.values() for plain in inside]
    every, dims = [*tensors, *weights], [*opened, *[frozenset[int]()] * len(weights)]
    forms = tuple(_form(*each) for each in zip(every, dims, strict=True))
    kinds = tuple((name, type(tensor)) for name, tensor in named.items())
    key = maker.name, kind, kinds, forms, _state_of(module), torch.get_num_threads()
    with _LOCK:
        known = _TRACED.setdefault(module, {}).setdefault(key, [])
        for code in known:
            if code.fits(tensors):
                return Piece(code, module, weights)

        def whole(*flat: torch.Tensor) -> Any:
            rest = iter(flat[len(tensors) :])
            made = {number: shell(rest) for number, (_, shell) in parts.items()}
            return call(_with(module, made, {}), list(flat[: len(tensors)]))

        known.append(_made(maker, whole, every, dims, len(weights), (kind, forms)))
    return Piece(known[-1], module, weights)


def _made(
    maker: Maker,
    function: Callable[..., Any],
    tensors: Tensors,
    opened: Open,
    weights: int,
    key: Any,
) -> Code:
    """Trace it, and compile what comes out unless something else has become the same."""
    threads, sizes = torch.get_num_threads(), ShapeEnv()
    mode = FakeTensorMode(shape_env=sizes)
    with torch.inference_mode(False):
        stand_ins: list[Any] = [
            _stand_in(mode, *each) for each in zip(tensors, opened, strict=True)
        ]
    alone: list[bool] = []

    def flat(*given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = function(*given)
        alone.append(isinstance(found, torch.Tensor))
        return (found,) if alone[-1] else found

    with torch.inference_mode(False), torch.no_grad():
        ways = maker.ways()
        with mode:
            graph = make_fx(flat, ways)(*stand_ins)
        graph.graph.eliminate_dead_code()
        graph.recompile()
        constants = [(name, tensor.tolist()) for name, tensor in graph.named_buffers()]
        given = [x for x, dims in zip(stand_ins, opened, strict=True) if dims]
        condition = sizes.produce_guards_expression(given, ignore_static=False)
        text = maker.name, graph.code, condition, repr(constants), alone[-1], key, threads
        if text not in _CODES:

            def fits(real: Tensors) -> bool:
                asked = [x for x, dims in zip(real, opened, strict=False) if dims]
                return condition is None or sizes.evaluate_guards_expression(condition, asked)

            bind = maker.make(graph, stand_ins, weights)
            _CODES[text] = Code(bind, alone[-1], fits)
    return _CODES[text]


def _stand_in(mode: FakeTensorMode, tensor: torch.Tensor, opened: frozenset[int]) -> torch.Tensor:
    """A tensor without numbers, and without sizes where these are open."""
    kinds = [DimDynamic.DYNAMIC if d in opened else DimDynamic.STATIC for d in range(tensor.ndim)]
    if tensor.is_inference():  # not even a trace outside of inference_mode may write into it
        tensor = torch.empty_strided(
            tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
        )
    return mode.from_tensor(
        tensor.detach(), symbolic_context=StatelessSymbolicContext(dynamic_sizes=kinds)
    )


def _with(module: nn.Module, made: dict[int, torch.Tensor], memo: dict[int, nn.Module]) -> Any:
    """A copy of a module with other tensors for its own, by id; nothing of the module changes."""
    if id(module) not in memo:
        memo[id(module)] = other = copy.copy(module)
        for kind in "_parameters", "_buffers":
            own = vars(module)[kind]
            vars(other)[kind] = {name: x if x is None else made[id(x)] for name, x in own.items()}
        vars(other)["_modules"] = {
            name: child if child is None else _with(child, made, memo)
            for name, child in module._modules.items()
        }
    return memo[id(module)]


def _taken_apart(tensor: torch.Tensor) -> tuple[Tensors, Callable[[Iterator[Any]], torch.Tensor]]:
    """The plain tensors of a tensor, and what makes it of others like them."""
    whole: Any = tensor
    if not is_traceable_wrapper_subclass(whole):
        return [tensor], next
    kind: Any = type(whole)
    names, context = whole.__tensor_flatten__()
    inside = [_taken_apart(getattr(tensor, name)) for name in names]
    size, stride = tensor.shape, tensor.stride()

    def shell(parts: Iterator[Any]) -> torch.Tensor:
        made = {name: make(parts) for name, (_, make) in zip(names, inside, strict=True)}
        found: torch.Tensor = kind.__tensor_unflatten__(made, context, size, stride)
        return found

    return [part for parts, _ in inside for part in parts], shell


def _form(tensor: torch.Tensor, opened: frozenset[int]) -> tuple[Any, ...]:
    """What of a tensor is part of the code."""
    shape = tuple(-1 if d in opened else size for d, size in enumerate(tensor.shape))
    strides = "dense" if tensor.is_contiguous() else tensor.stride()
    return shape, strides, tensor.dtype, tensor.device


def _state_of(module: nn.Module) -> tuple[Any, ...]:
    """What modules, and objects that they have, hold in plain Python: a trace may have read it.

    Hooks are not in it: their numbers are others in every `with`.
    """
    known: dict[int, Any] = {}

    def described(value: Any) -> Any:
        if _is_plain(value):
            return repr(value)
        if isinstance(value, FunctionType | BuiltinFunctionType):
            return value
        if isinstance(value, nn.Module | torch.Tensor | type) or not hasattr(value, "__dict__"):
            return type(value)
        if id(value) not in known:  # a configuration, which many modules share
            known[id(value)] = type(value), _plain_of(value)
        return known[id(value)]

    return tuple(
        (
            type(each),
            *((name, described(x)) for name, x in vars(each).items() if "_hooks" not in name),
        )
        for each in module.modules()
    )


def _plain_of(value: Any) -> tuple[tuple[str, str], ...]:
    return tuple((name, repr(x)) for name, x in vars(value).items() if _is_plain(x))


def _refuse_hooks(module: nn.Module) -> None:
    """Code would run none of them, and a trace would give them tensors without numbers.

    The module's own are no part of its code. Those of transformers, which collect what is asked
    for, are for steps that are not compiled.

    Raises:
        NotImplementedError: somebody's hook on a module below this one.
    """
    for name, each in module.named_modules():
        for hook in (*each._forward_pre_hooks.values(), *each._forward_hooks.values()):
            if name and not getattr(hook, "__module__", "").startswith("transformers."):
                raise NotImplementedError(f"{name} of {type(module).__name__} has a hook")


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_plain(x) for x in value.values())
    return isinstance(value, _SCALARS) or (
        isinstance(value, list | tuple) and all(_is_plain(x) for x in value)
    )
