"""A decode step whose layers, and the head behind them, are compiled one by one for a CPU.

In the place of compiling the decoder as a whole: layers share code, and slots and prompts are sizes
left open (`st3.engine.compiled`). The decoder goes on calling its layers, which find this object in
their `Forward`. What a layer reads of the cache are inputs of its code, too; counts of tokens,
which no code may hold, are kept from whoever traces it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from st3.engine.attention import FORWARD, NO_MASK
from st3.engine.codes import Plain
from st3.engine.compiled import Maker, Piece, Tensors, piece
from st3.engine.kernels import attend_by_sums
from st3.engine.recording import first_line, warn
from st3.engine.static_cache import StaticLayer
from st3.families.parts import argument_names

_ALWAYS = frozenset[int]()


class CompiledLayers:
    """Called as the decoder's forward, with the arguments of a decode step over static layers.

    Args:
        maker: compiles what is traced.
        forward: the decoder's own.
    """

    def __init__(self, maker: Maker, forward: Callable[..., Any]) -> None:
        self.maker, self.forward = maker, forward
        self.pieces: dict[Any, Piece] = {}
        self.heads = True  # as long as none has failed

    def __call__(self, **kwargs: Any) -> Any:
        """The decoder's output.

        Raises:
            Exception: whatever tracing and compiling raise; the step may be run again then.
        """
        step = kwargs[FORWARD]
        step.code = self
        try:
            return self.forward(**kwargs)
        finally:
            step.code = None

    def look_again(self) -> None:
        """Modules may have become others: weights, adapters or hooks that somebody put in place."""
        self.pieces.clear()

    def layer(self, module: nn.Module, number: int, args: Any, kwargs: dict[str, Any]) -> Any:
        """What layer `number` (from 1) returns for these arguments."""
        named = dict(zip(argument_names(type(module).forward), args, strict=False)) | kwargs
        step = named[FORWARD]
        cached = step.cache.layers[number - 1]
        tensors: Tensors = []
        _collect(named, tensors)
        tensors += (cached.keys, cached.values, cached.slots.slot, cached.slots.bias)
        return self._run(
            number,
            module,
            tensors,
            lambda: _layer_call(step, number, named, cached, tensors, self.maker.by_sums),
        )

    def head(self, module: nn.Module, hidden: torch.Tensor) -> torch.Tensor | None:
        """What the head makes of [B, 1, d]; None if it is not compiled."""
        if not self.heads:
            return None
        hidden = hidden.contiguous()  # a prompt's last token lies apart from that of other rows
        try:
            found: torch.Tensor = self._run(0, module, [hidden], lambda: (_head_call, [[]], "head"))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            self.heads = False
            warn(f"decoding goes on without a compiled head: {first_line(error)}")
            return None
        return found

    def _run(
        self,
        number: int,
        module: nn.Module,
        tensors: Tensors,
        describe: Callable[[], tuple[Any, list[list[int]] | None, Any]],
    ) -> Any:
        shapes = number, torch.get_num_threads(), *[tensor.shape for tensor in tensors]
        found = self.pieces.get(shapes)
        if found is None:
            call, dims, kind = describe()
            rows = tensors[0].shape[0] if dims is not None else 1
            # Code for one prompt is code of its own: its products are other loops.
            opened = [
                frozenset(some) | ({0} if rows > 1 and tensor.shape[:1] == (rows,) else _ALWAYS)
                for tensor, some in zip(tensors, dims or [[]] * len(tensors), strict=True)
            ]
            found = self.pieces[shapes] = piece(self.maker, module, call, tensors, opened, kind)
        return found(tensors)


def _head_call(module: nn.Module, tensors: Tensors) -> Any:
    return type(module).forward(module, *tensors)


def _layer_call(
    step: Any,
    number: int,
    named: dict[str, Any],
    cached: StaticLayer,
    tensors: Tensors,
    by_sums: bool,
) -> tuple[Any, list[list[int]] | None, Any]:
    """The call of a layer like it with other tensors, their open sizes if any may be, its kind."""
    given = len(tensors) - 4
    others = {
        name: value if _plain(value) else type(value).__qualname__
        for name, value in named.items()
        if not isinstance(value, torch.Tensor)
    }
    kind = step.backend, cached.key_form, cached.value_form, tuple(named), repr(others)

    def call(module: nn.Module, tensors: Tensors) -> Any:
        traced, cache = copy.copy(step), copy.copy(step.cache)
        cache.layers = [None] * len(step.cache.layers)
        cache.layers[number - 1] = cached.stand_in(*tensors[given:])
        traced.cache, traced.code = cache, None
        if by_sums and step.backend == "sdpa":
            traced.attention = attend_by_sums
        rest = iter(tensors[:given])
        arguments = {
            name: cache if value is step.cache else _filled(value, rest)
            for name, value in named.items()
        }
        arguments[FORWARD] = traced
        return type(module).forward(module, **arguments)

    # torch cannot read bytes as numbers where a size is open.
    plain = all(isinstance(form, Plain) for form in (cached.key_form, cached.value_form))
    return call, [*[[]] * given, [2], [2], [], [3]] if plain else None, kind


def _collect(value: Any, found: Tensors) -> None:
    """The tensors of an argument, in order."""
    if isinstance(value, torch.Tensor):
        if value is not NO_MASK:
            found.append(value)
    elif isinstance(value, dict):
        for each in value.values():
            _collect(each, found)
    elif isinstance(value, tuple | list):
        for each in value:
            _collect(each, found)


def _filled(value: Any, tensors: Iterator[torch.Tensor]) -> Any:
    """The same argument with other tensors."""
    if isinstance(value, torch.Tensor):
        return value if value is NO_MASK else next(tensors)
    if isinstance(value, dict):
        return {name: _filled(each, tensors) for name, each in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_filled(each, tensors) for each in value)
    return value


def _plain(value: Any) -> bool:
    return isinstance(value, bool | int | float | str | type(None))


def in_place_of(forward: Callable[..., Any], module: nn.Module, number: int) -> Callable[..., Any]:
    """A layer's forward, by compiled code in a step that has some."""
    return partial(_forward, forward, module, number)


def _forward(
    forward: Callable[..., Any], module: nn.Module, number: int, *args: Any, **kwargs: Any
) -> Any:
    step = kwargs.get(FORWARD)
    code: CompiledLayers | None = None if step is None else step.code
    if code is None:
        return forward(*args, **kwargs)
    return code.layer(module, number, args, kwargs)
