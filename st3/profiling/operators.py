"""Where the decoder's time goes: operators by kind, in prefill and in a decode step.

torch's profiler runs around the decoder alone, in runs of their own, since it slows down what it
watches: read the shares, and take the times from the tables that were measured without it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from st3.families.parts import find_parts
from st3.inference.decoding import decode
from st3.inference.device_map import home
from st3.profiling.runs import Variant, random_inputs
from st3.profiling.shape import Workload

# `copies` are gathers and concatenations, too; `other` is norms and whatever is element-wise;
# `outside` is the wall clock without all of these.
_STEPS = 6  # decode steps that are watched
_TOP = 12
_NAME = 120  # letters of a kernel's name that tell what it is
KINDS: dict[str, tuple[str, ...]] = {
    "matmul": ("mm", "addmm", "bmm", "baddbmm", "addmv", "mv", "mkldnn_linear"),
    "attention": (
        "_scaled_dot_product", "_flash_attention", "_efficient_attention", "_cudnn_attention",
        "_fused_sdp",
    ),
    "copies": (
        "copy_", "cat", "index", "gather", "scatter", "fill_", "zero_", "empty", "flip",
    ),
    "sorting": ("sort", "topk", "argsort"),
}  # fmt: skip
REST = "other"
REPLAYED = "replayed"  # kernels that no operator launched: a recording's, or a compiler's
OUTSIDE = "outside"


def operators(model: Any, work: Workload, variants: Mapping[str, Variant]) -> list[dict[str, Any]]:
    """Time by kind of operator for every variant.

    Returns:
        Entries {method, batch_size, phase, wall_ms, kinds: {kind: ms}, top: [{operator, ms,
        calls}]}, and on a GPU kernels: the same by kernel, and kernels_ms, kernels_run: all of them
        together; phase is "prefill" or "decode step", the latter a mean over a few steps. Times of
        operators are their own, on the device that computes; what is left of the wall clock is
        Python, launching and waiting. A pass that is replayed calls hardly an operator; its kernels
        are a kind of their own.
    """
    inputs = random_inputs(model, work)
    found = []
    for label, variant in variants.items():
        for turn in range(2):  # the first warms up
            passes = watch(model, inputs, work, variant)
            if turn:
                phases = {"prefill": passes[:1], "decode step": passes[2:]}
                found += [
                    {"method": label, "batch_size": work.batch, "phase": phase}
                    | _summary(some, home(model).type == "cuda")
                    for phase, some in phases.items()
                    if some
                ]
    return found


def watch(
    model: Any, inputs: dict[str, Any], work: Workload, variant: Variant
) -> list[tuple[float, Any]]:
    """Seconds and profile of each pass of the decoder: a prefill, then a few steps."""
    new = min(work.new, _STEPS + 2)
    passes: list[tuple[float, Any]] = []
    with variant.trimmed(model, new):
        variant.prepare(model, inputs)
        with _around(find_parts(model).decoder, passes, home(model)):
            decode(model, inputs, endless=True, max_new_tokens=new)
    return passes


@contextmanager
def _around(decoder: Any, passes: list[tuple[float, Any]], device: torch.device) -> Iterator[None]:
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    running: list[tuple[float, Any]] = []

    def begin(*_: Any) -> None:
        watcher = profile(activities=activities, acc_events=True)
        watcher.start()
        running.append((time.perf_counter(), watcher))

    def end(*_: Any) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started, watcher = running.pop()
        seconds = time.perf_counter() - started
        watcher.stop()
        passes.append((seconds, watcher))

    # Before trim's own hook, so that its work is inside.
    handles = [
        decoder.register_forward_pre_hook(begin, prepend=True),
        decoder.register_forward_hook(end),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _summary(passes: list[tuple[float, Any]], on_cuda: bool) -> dict[str, Any]:
    attribute = "self_device_time_total" if on_cuda else "self_cpu_time_total"
    times: dict[str, float] = {}
    calls: dict[str, int] = {}
    kernels: dict[str, float] = {}
    kernels_run = 0
    for _, watcher in passes:
        for event in watcher.key_averages():
            name, ms = event.key.removeprefix("aten::"), getattr(event, attribute) / 1000
            if event.key.startswith("aten::"):
                times[name] = times.get(name, 0.0) + ms
            elif on_cuda and event.device_type.name != "CPU":
                kernels[name] = kernels.get(name, 0.0) + ms
                kernels_run += event.count
            calls[name] = calls.get(name, 0) + event.count
    count = len(passes)

    def top(times: dict[str, float], what: str) -> list[dict[str, Any]]:
        names = sorted(times, key=lambda name: -times[name])[:_TOP]
        return [
            {what: name[:_NAME], "ms": times[name] / count, "calls": calls[name] / count}
            for name in names
        ]

    wall = 1000 * sum(seconds for seconds, _ in passes) / count
    kinds = dict.fromkeys((*KINDS, REST), 0.0)
    for name, ms in times.items():
        kinds[kind_of(name)] += ms / count
    if on_cuda:
        kinds[REPLAYED] = max(0.0, (sum(kernels.values()) / count) - sum(kinds.values()))
    kinds[OUTSIDE] = max(0.0, wall - sum(kinds.values()))
    found = {"wall_ms": wall, "kinds": kinds, "top": top(times, "operator")}
    if on_cuda:
        found |= {"kernels": top(kernels, "kernel"), "kernels_run": kernels_run / count}
        found |= {"kernels_ms": sum(kernels.values()) / count}
    return found


def kind_of(operator: str) -> str:
    """The kind of an ATen operator, by its name without the namespace."""
    for kind, names in KINDS.items():
        for name in names:
            if operator == name or (len(name) > 3 and operator.startswith(name)):
                return kind
    return REST
