"""What the device can do at best, measured; and the time that a workload would take at that rate.

The roofline: no layer is faster than its arithmetic at the matrix product rate, nor than its bytes
at the copy bandwidth.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from st3.engine.linears import fast_linears
from st3.machine import free_memory
from st3.profiling.clocks import clock_for
from st3.profiling.course import Course
from st3.profiling.layers import Layer
from st3.profiling.macs import MacCounter
from st3.profiling.shape import Shape, Workload

_SECONDS = 0.25  # for each measurement


@dataclass(frozen=True)
class Ceilings:
    """Best rates seen.

    Attributes:
        macs_per_second: of a large linear layer in the model's dtype.
        bytes_per_second: read and written by a copy larger than any cache.
        launch_seconds: to start an operation that does next to nothing.
    """

    macs_per_second: float
    bytes_per_second: float
    launch_seconds: float


@dataclass(frozen=True)
class Ideal:
    """Roofline of one forward, milliseconds.

    Attributes:
        time: the larger of both in every layer, added up.
        arithmetic, bandwidth: each as if there were only it.
    """

    time: float
    arithmetic: float
    bandwidth: float


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Measure them, about a second and a half; rates are the best of many repeats."""
    on_cuda = device.type == "cuda"
    rates = []
    for side in (4096, 8192) if on_cuda else (512, 1024, 2048):
        left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        with fast_linears(device, dtype):  # no method may be faster than the ceiling
            product_ms = _fastest(device, partial(torch.nn.functional.linear, left, right))
        rates.append(1000 * side**3 / product_ms)
    count = min(2**30 if on_cuda else 2**28, free_memory(device) // 8)
    source = torch.zeros(count, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_ms = _fastest(device, lambda: target.copy_(source))
    tiny = torch.zeros(1, device=device, dtype=dtype)
    many = 1000

    def launch() -> None:
        for _ in range(many):
            tiny.add_(1)

    launch_ms = _fastest(device, launch)
    return Ceilings(
        macs_per_second=max(rates),
        bytes_per_second=1000 * 2 * count / copy_ms,
        launch_seconds=launch_ms / 1000 / many,
    )


def best_of(found: Sequence[Ceilings]) -> Ceilings:
    """A device that is shared or warms up is measured more than once."""
    return Ceilings(
        max(c.macs_per_second for c in found),
        max(c.bytes_per_second for c in found),
        min(c.launch_seconds for c in found),
    )


def ideal_prefill(
    ceilings: Ceilings, counter: MacCounter, course: Course, work: Workload, element: int,
    saved: Sequence[int] | None = None, kind: str = "auto",
) -> Ideal:  # fmt: skip
    """The decoder layers over the prompts: weights are read once, keys and values written.

    Of attention only the causal half counts: kernels may skip the other one. `saved` is by how many
    bytes each layer's weights are less than `element` a parameter; by none if None.
    """
    each = zip(counter.layers, counter.prefill_layers(course), course.keys, strict=True)
    macs = [work.batch * (count - layer.future_macs(keys)) for layer, count, keys in each]
    none = [0] * len(counter.layers)
    written = [
        work.batch * (layer.cached_bytes(element, kind) * held + layer.state_bytes(element)) - less
        for layer, held, less in zip(counter.layers, course.held[0], saved or none, strict=True)
    ]
    rows = [work.batch * tokens for tokens in course.tokens]
    return _layers(ceilings, counter.layers, element, macs, written, rows)


def ideal_step(
    ceilings: Ceilings, counter: MacCounter, shape: Shape, course: Course, work: Workload,
    element: int, saved: Sequence[int] | None = None, kind: str = "auto",
) -> Ideal | None:  # fmt: skip
    """The mean decode step, LM head included: weights and all live keys and values are read.

    Of experts those that the batch meets. States are read and written.
    """
    if work.new < 2:
        return None
    found, none = [], [0] * len(counter.layers)
    lent = [
        counter.layers[(layer.lender or number) - 1].cached_bytes(element, kind)
        for number, layer in enumerate(counter.layers, 1)
    ]
    for held in course.held[1:]:
        macs = [work.batch * count for count in counter.step_layers(held)]
        moved = [
            work.batch * (cached * keys + 2 * layer.state_bytes(element)) - less
            for layer, cached, keys, less in zip(
                counter.layers, lent, held, saved or none, strict=True
            )
        ]
        found.append(
            _layers(ceilings, counter.layers, element, macs, moved, [work.batch] * len(macs))
        )
    layers, steps = _add(*found), work.new - 1
    head = _one(ceilings, work.batch * counter.head(), element * shape.head_parameters)
    return _add(
        Ideal(layers.time / steps, layers.arithmetic / steps, layers.bandwidth / steps), head
    )


def _layers(
    ceilings: Ceilings, layers: Sequence[Layer], element: int, macs: Sequence[int],
    moved: Sequence[int], rows: Sequence[int],
) -> Ideal:  # fmt: skip
    """Layers one after the other: bytes are `moved`, and the weights that `rows` tokens meet."""
    parts = (
        _one(ceilings, count, element * layer.parameters_read(tokens) + more)
        for layer, count, more, tokens in zip(layers, macs, moved, rows, strict=True)
    )
    return _add(*parts)


def _one(ceilings: Ceilings, macs: int, moved: float) -> Ideal:
    arithmetic = 1000 * macs / ceilings.macs_per_second
    bandwidth = 1000 * moved / ceilings.bytes_per_second
    return Ideal(max(arithmetic, bandwidth), arithmetic, bandwidth)


def _add(*parts: Ideal) -> Ideal:
    return Ideal(
        sum(p.time for p in parts),
        sum(p.arithmetic for p in parts),
        sum(p.bandwidth for p in parts),
    )


def _fastest(device: torch.device, work: Callable[[], Any]) -> float:
    """Milliseconds of the fastest of many runs."""
    clock = clock_for(device)
    work()
    times: list[float] = []
    started = time.perf_counter()
    while time.perf_counter() - started < _SECONDS or len(times) < 3:
        first = clock.mark()
        work()
        times.append(clock.between(first, clock.mark()))
    return min(times)
