"""When what ran: each kernel of one prefill and one decode step, from its start to its end.

Watched by torch's profiler, which slows down what it watches: read the order, the gaps and the
shares, and take the times from the tables. On a CPU an operator stands for its kernels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from st3.inference.device_map import home
from st3.profiling.operators import REST, kind_of, watch
from st3.profiling.runs import Variant, random_inputs
from st3.profiling.shape import Workload

_PASSES = {"prefill": 0, "decode step": 2}  # the step before may record
_BY_NAME = {
    "attention": ("flash", "fmha", "attention"),
    "matmul": ("gemm", "gemv", "cutlass", "cublas", "nvjet", "splitk", "matmul"),
    "sorting": ("sort", "radix", "topk", "bitonic"),
    "copies": ("copy", "memcpy", "memset", "catarray", "gather", "scatter", "index", "fill"),
}
"""What is in the name of a GPU's kernel, the first that fits: our choice."""


def timelines(model: Any, work: Workload, variants: Mapping[str, Variant]) -> list[dict[str, Any]]:
    """A prefill and a decode step of every variant.

    Returns:
        Entries {method, phase, span_ms, idle_share, events: [[start_ms, ms, kind]]}; idle_share is
        the part of the span in which no kernel ran.
    """
    inputs = random_inputs(model, work)
    on_cuda = home(model).type == "cuda"
    found = []
    for label, variant in variants.items():
        watch(model, inputs, work, variant)  # warms up
        passes = watch(model, inputs, work, variant)
        for phase, number in _PASSES.items():
            if number < len(passes):
                events = sorted(_kernels(passes[number][1], on_cuda))
                if events:
                    found.append({"method": label, "phase": phase} | _laid_out(events))
    return found


def kind_of_kernel(name: str) -> str:
    """The kind of a GPU's kernel, by its name."""
    low = name.lower()
    for kind, words in _BY_NAME.items():
        if any(word in low for word in words):
            return kind
    return REST


def _kernels(watcher: Any, on_cuda: bool) -> Iterator[tuple[float, float, str]]:
    """Start and end in microseconds, and kind."""
    for event in watcher.events():
        if not on_cuda and event.cpu_parent is None:
            yield from _operators(event)
        elif on_cuda and event.device_type.name != "CPU" and not event.is_user_annotation:
            yield event.time_range.start, event.time_range.end, kind_of_kernel(event.name)


def _operators(event: Any) -> Iterator[tuple[float, float, str]]:
    """The outermost operators of a known kind, and what is left that calls no other."""
    inside = [child for child in event.cpu_children if child.name.startswith("aten::")]
    name = event.name.removeprefix("aten::")
    kind = kind_of(name) if name != event.name else REST
    if kind == REST and inside:
        for child in inside:
            yield from _operators(child)
    elif name != event.name:
        yield event.time_range.start, event.time_range.end, kind


def _laid_out(events: Sequence[tuple[float, float, str]]) -> dict[str, Any]:
    """Milliseconds from the first start."""
    began = events[0][0]
    ended = max(end for _, end, _ in events)
    busy, reached = 0.0, began
    for start, end, _ in events:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    span = max(ended - began, 1e-3)
    return {
        "span_ms": span / 1000,
        "idle_share": 1 - busy / span,
        "events": [
            [round((start - began) / 1000, 4), round((end - start) / 1000, 4), kind]
            for start, end, kind in events
        ],
    }
