"""`profile`: count every method, time it where the model fits, and put both beside the roofline."""

from __future__ import annotations

import datetime
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import torch

from st3.machine import describe_machine
from st3.methods import Method, make_method
from st3.profiling.ceilings import (
    Ceilings,
    best_of,
    ideal_prefill,
    ideal_step,
    measure_ceilings,
)
from st3.profiling.costs import Costs, costs_of
from st3.profiling.latency import STOCK, Measured, measure
from st3.profiling.macs import MacCounter
from st3.profiling.operators import operators
from st3.profiling.report import Report, Row
from st3.profiling.shape import Shape, Workload, meta_model, shape_of

_BEYOND = (
    "The model was much faster than the matrix products measured beside it: do not trust the "
    "roofline."
)
_INTERRUPTED = "Interrupted: medians are over the rounds that had ended, if any."


def profile(
    name: str,
    config: Any,
    methods: Mapping[str, Method],
    works: Sequence[Workload],
    *,
    dtype: torch.dtype,
    live: Any = None,
    weights: str | None = None,
    repeats: int = 5,
    min_seconds: float = 0.0,
    cuda_graphs: bool = False,
    watch_operators: bool = False,
    command: str = "",
    notes: Sequence[str] = (),
    on_run: Callable[[str, int], None] = lambda name, done: None,
) -> Report:
    """Profile methods on one model.

    Args:
        name: of the model, for the report.
        config: its configuration.
        methods: label -> method; `stock` is always added.
        works: what is asked of it, one entry a batch size.
        dtype: of weights and cache.
        live: the model to time, on its device; None counts only.
        weights: what the live model's are, "pretrained" or "random".
        repeats, min_seconds, cuda_graphs, on_run: see `st3.profiling.latency.measure`.
        watch_operators: also find out where the decoder's time goes.
        command, notes: for the report.

    Raises:
        ValueError: a configuration that is no LLaVA's, a method that does not fit its depth, a
            workload that does not fit the live model.
        RuntimeError: the live cache held other bytes than the schedule says.
    """
    model = meta_model(config)
    shape, counter = shape_of(model), MacCounter(model)
    schedules = {label: m.schedule(shape.layers) for label, m in methods.items()}
    everyone = {STOCK: make_method("none").schedule(shape.layers), **schedules}
    element = dtype.itemsize
    options: dict[str, Any] = {
        "repeats": repeats, "min_seconds": min_seconds, "cuda_graphs": cuda_graphs,
    }  # fmt: skip
    timed, ceilings, interrupted = _time(live, works, methods, dtype, on_run, options)
    best = best_of(ceilings) if ceilings else None
    rows, samples = [], []
    for number, work in enumerate(works):
        measured = timed[number] if number < len(timed) else {}
        full = costs_of(counter, shape, everyone[STOCK], work, element)
        if best is not None:
            full_ms = ideal_prefill(best, counter, shape, everyone[STOCK], work, element).time
        for label, schedule in everyone.items():
            cost = costs_of(counter, shape, schedule, work, element)
            figures = _counted(cost, full)
            if best is not None and measured:
                _check_bytes(label, cost, measured[label])
                figures |= _timed(label, measured, work)
                figures |= _against_roofline(
                    figures, measured, label, best,
                    ideal_prefill(best, counter, shape, schedule, work, element),
                    full_ms,
                    ideal_step(best, counter, shape, schedule, work, element),
                )  # fmt: skip
                if cuda_graphs and label != STOCK:  # counted without, so not what was timed
                    figures |= {"step_launches": None, "step_launch_ms": None}
                samples.append(_samples(label, work, measured[label]))
            settings = methods[label].settings(shape.layers) if label in methods else {}
            rows.append(Row(method=label, batch_size=work.batch, settings=settings, **figures))
    watched: list[dict[str, Any]] = []
    if watch_operators and samples and not interrupted:
        for work in works:
            watched += operators(live, work, methods)
    if any((row.prefill_roofline_share or 0) > 1.2 for row in rows):
        notes = [*notes, _BEYOND]
    if not samples and interrupted:
        notes = []
    machine = describe_machine(None if live is None else live.device, dtype)
    if best is not None:
        machine["ceilings"] = asdict(best)
    work = works[0]
    length = work.visual + work.text + work.new
    if length > shape.context:
        notes = [*notes, f"{length} tokens exceed the model's context of {shape.context}."]
    return Report(
        model=name,
        weights=weights if samples else None,
        rows=tuple(rows),
        shape=asdict(shape),
        settings={
            "visual_tokens": work.visual, "text_tokens": work.text, "new_tokens": work.new,
            **options, "command": command,
            "date": datetime.date.today().isoformat(),
        },
        machine=machine,
        notes=(*notes, *([_INTERRUPTED] * interrupted)),
        samples=tuple(samples),
        alive={
            label: [
                [schedule.count(layer, work.visual, t) for layer in range(1, shape.layers + 1)]
                for t in range(work.new)
            ]
            for label, schedule in schedules.items()
        },
        operators=tuple(watched),
        interrupted=interrupted,
    )  # fmt: skip


def _time(
    live: Any, works: Sequence[Workload], methods: Mapping[str, Method], dtype: torch.dtype,
    on_run: Callable[[str, int], None], options: dict[str, Any],
) -> tuple[list[dict[str, Measured]], list[Ceilings], bool]:  # fmt: skip
    """Runs of each workload, ceilings before and after each, and whether Ctrl-C ended it."""
    timed: list[dict[str, Measured]] = []
    ceilings: list[Ceilings] = []
    if live is None:
        return timed, ceilings, False
    on_cuda = live.device.type == "cuda"
    try:
        with torch.cuda.device(live.device) if on_cuda else nullcontext():
            for work in works:
                ceilings.append(measure_ceilings(live.device, dtype))
                found, interrupted = measure(live, work, methods, on_run=on_run, **options)
                timed.append(found)
                if interrupted:
                    return timed, ceilings, True
            ceilings.append(measure_ceilings(live.device, dtype))
    except KeyboardInterrupt:
        return timed, ceilings, True
    return timed, ceilings, False


def memory_needed(shape: Shape, work: Workload, dtype: torch.dtype, *, eager: bool = False) -> int:
    """Bytes to run the model untrimmed, about: weights, KV cache twice, activations of a layer.

    Eager attention also has its n x n scores, twice.
    """
    tokens = work.visual + work.text + work.new
    cache = 2 * shape.layers * shape.kv_heads * shape.head_size * work.batch * tokens
    layer = work.batch * tokens * (8 * shape.hidden + 3 * shape.intermediate)
    scores = 2 * work.batch * shape.heads * tokens**2 if eager else 0
    return dtype.itemsize * (shape.parameters + 2 * cache + layer) + 4 * scores


def _counted(cost: Costs, full: Costs) -> dict[str, Any]:
    mean = statistics.fmean(cost.kv_bytes)
    return {
        "prefill_macs": cost.prefill_macs,
        "prefill_flops": 2 * cost.prefill_macs,
        "prefill_macs_ratio": cost.prefill_macs / full.prefill_macs,
        "decode_macs": cost.decode_macs,
        "decode_flops": 2 * cost.decode_macs,
        "decode_macs_ratio": cost.decode_macs / full.decode_macs if full.decode_macs else None,
        "vision_macs": cost.vision_macs,
        "projector_macs": cost.projector_macs,
        "lm_head_macs": cost.head_macs,
        "kv_bytes": cost.kv_bytes[0],
        "kv_ratio": cost.kv_bytes[0] / full.kv_bytes[0],
        "kv_mean_bytes": mean,
        "kv_mean_ratio": mean / statistics.fmean(full.kv_bytes),
        "kv_peak_bytes": max(cost.kv_bytes),
    }


def _check_bytes(label: str, cost: Costs, measured: Measured) -> None:
    for run in measured.runs:
        if run.kv_bytes is not None and run.kv_bytes != cost.kv_bytes:
            raise RuntimeError(
                f"{label}: the live KV cache held other bytes than its schedule says: a bug in "
                "st3, please report it with the output of `st3 env`"
            )


def _timed(label: str, measured: Mapping[str, Measured], work: Workload) -> dict[str, Any]:
    runs = measured[label].runs
    steps = [step for run in runs for step in run.steps]
    total = _median(measured, label, "total")
    peaks = [run.peak for run in runs if run.peak is not None]
    return {
        "ttft_ms": _median(measured, label, "ttft"),
        "vision_ms": _median(measured, label, "vision"),
        "prefill_ms": _median(measured, label, "prefill"),
        "tpot_ms": statistics.median(steps) if steps else None,
        "tpot_p90_ms": statistics.quantiles(steps, n=10, method="inclusive")[-1]
        if len(steps) > 1
        else None,
        "e2e_ms": total,
        "tokens_per_second": 1000 * work.batch * work.new / total,
        "speedup": _median(measured, STOCK, "total") / total,
        "speedup_over_none": (
            _median(measured, "none", "total") / total if "none" in measured else None
        ),
        "peak_memory_bytes": max(peaks) if peaks else None,
        "kv_allocated_bytes": runs[-1].allocated,
    }


def _against_roofline(
    figures: Mapping[str, Any],
    measured: Mapping[str, Measured],
    label: str,
    ceilings: Ceilings,
    prefill: Any,
    untrimmed_ms: float,
    step: Any,
) -> dict[str, Any]:
    launched = measured[label].launched
    ideal = 1 - prefill.time / untrimmed_ms
    achieved = 1 - figures["prefill_ms"] / _median(measured, STOCK, "prefill")
    launch_ms = 1000 * ceilings.launch_seconds
    steps = round(launched.steps[-1]) if launched.steps else None
    return {
        "prefill_ideal_ms": prefill.time,
        "prefill_bound": _bound(prefill),
        "prefill_roofline_share": prefill.time / figures["prefill_ms"],
        "ideal_saving": ideal,
        "achieved_saving": achieved,
        "saving_share": achieved / ideal if ideal > 0 else None,
        "prefill_launches": round(launched.prefill),
        "prefill_launch_ms": launched.prefill * launch_ms,
        "tpot_ideal_ms": None if step is None else step.time,
        "tpot_bound": None if step is None else _bound(step),
        "tpot_roofline_share": None if step is None else step.time / figures["tpot_ms"],
        "step_launches": steps,
        "step_launch_ms": None if steps is None else steps * launch_ms,
    }


def _bound(ideal: Any) -> str:
    return "compute" if ideal.arithmetic > ideal.bandwidth else "bandwidth"


def _median(measured: Mapping[str, Measured], label: str, what: str) -> float:
    return float(statistics.median(getattr(run, what) for run in measured[label].runs))


def _samples(label: str, work: Workload, measured: Measured) -> dict[str, Any]:
    return {
        "method": label,
        "batch_size": work.batch,
        "ttft_ms": [run.ttft for run in measured.runs],
        "prefill_ms": [run.prefill for run in measured.runs],
        "e2e_ms": [run.total for run in measured.runs],
        "tpot_ms": [statistics.fmean(run.steps) if run.steps else None for run in measured.runs],
    }
