"""The kinds of cells: each measures in one process, interleaved, and returns its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import Any

import torch

from st3.benchmark.cold import cold
from st3.benchmark.lab import Lab
from st3.benchmark.memory import OutOfBudget, largest_batch
from st3.engine.kernels import without_plans
from st3.methods import parse_methods, split_spec
from st3.profiling.clocks import clock_for
from st3.profiling.figures import samples_of
from st3.profiling.latency import measure
from st3.profiling.operators import operators
from st3.profiling.outcome import Run
from st3.profiling.picture import STANDARD
from st3.profiling.runs import Variant, generate_once, random_inputs
from st3.profiling.shape import Workload
from st3.profiling.timeline import timelines
from st3.verification.fitting import standard_methods
from st3.verification.verify import find_subject, verify

Rows = list[dict[str, Any]]


EXACT = ("none", "st3", "fastv", "vtw", "pyramiddrop", "random")
"""Methods of which `exact` asks an oracle."""


class Skipped(Exception):
    """This machine cannot measure the cell; the message says why."""


def exact(lab: Lab, models: Sequence[str], *, dtype: str, new: int) -> Rows:
    """Is it right on this device: `none` beside stock, methods beside an oracle.

    The demo is itself; of the others a tiny random model of their shape is made. What cannot be
    checked is a row that says so.
    """
    rows: Rows = []
    for model in models:
        subject = find_subject(model, random=model != "demo", device=str(lab.device), dtype=dtype)
        specs = standard_methods(subject.layers).split(",")
        wanted = parse_methods(",".join(x for x in specs if split_spec(x)[0] in EXACT))
        report = verify(subject, wanted, new=new)
        what = {
            "model": model if report.weights == "checkpoint" else f"tiny {model}",
            "weights": "trained" if report.weights == "checkpoint" else "random",
            "dtype": report.dtype,
            "visual_tokens": report.visual_tokens,
            "text_tokens": report.prompt_tokens - report.visual_tokens,
            "new_tokens": report.new_tokens,
            "batch_size": 1,
            "bound": report.bound,
        }
        rows += [what | asdict(row) for row in report.rows]
    return rows


def ceilings(lab: Lab) -> Rows:
    """What the device can do at best."""
    return [asdict(lab.ceilings())]


def timed(
    lab: Lab,
    model: str,
    variants: Mapping[str, Variant],
    *,
    pictures: int = 1,
    picture: tuple[int, int] = STANDARD,
    batch: int = 1,
    new: Sequence[int] = (64,),
    rounds: int,
    cudnn: bool = False,
    go_on: bool = False,
) -> Rows:
    """Variants side by side, a row for each of them and each length of answer.

    The longest answer is run; shorter ones are its beginning, see `Run.until`. What is compiled is
    compiled anew, so that `compiling_s` is that of a first run.

    Args:
        lab, model: where and what.
        variants: label -> variant.
        pictures, batch, new, rounds: the work; `picture` is their size in pixels.
        cudnn: whether torch may take cuDNN's attention. On Hopper it builds a plan for every length
            that a process has not seen, tens of milliseconds in each step of stock's: without it
            stock is at its best, but for long prompts. With it every variant first runs once in
            full, `first_e2e_ms`, so that all lengths have been seen.
        go_on: where a variant cannot be had, which the notes of the rows say then.

    Raises:
        KeyboardInterrupt: before one round had ended.
        Unavailable: a variant that cannot be had.
    """
    maker, longest = lab.maker(model), max(new)
    work = Workload(lab.pictures(model, pictures, picture), 64, longest, batch, picture)
    best = lab.ceilings()
    live = lab.model(model)
    dropped: dict[str, str] = {}
    compiles = any(one.static or one.compile != "off" for one in variants.values())
    with cold() if compiles else nullcontext(), nullcontext() if cudnn else without_plans():
        first = _first(live, work, variants) if cudnn else {}
        found, interrupted = measure(
            live, work, variants, repeats=rounds, min_seconds=0,
            on_drop=dropped.__setitem__ if go_on else None,
        )  # fmt: skip
    if not found:
        raise KeyboardInterrupt
    rows: Rows = []
    for length in new:
        part = replace(work, new=length)
        until = {label: measured.until(length) for label, measured in found.items()}
        rows += [
            _what(lab, model, part)
            | {"within_new": longest, "rounds": len(found[row.method].runs)}
            | {"cudnn_attention": cudnn, "first_e2e_ms": first.get(row.method)}
            | asdict(row)
            | {"samples": samples_of(row.method, part, until[row.method])}
            | {"ceilings": asdict(best)}
            | ({"interrupted": True} if interrupted else {})
            | ({"notes": [f"{label}: {why}" for label, why in dropped.items()]} if dropped else {})
            for row in maker.rows(part, variants, until, best)
        ]
    return rows


def _first(live: Any, work: Workload, variants: Mapping[str, Variant]) -> dict[str, float]:
    """Milliseconds of each variant's first generation of this work in the process."""
    inputs = random_inputs(live, work)
    return {
        label: generate_once(live, inputs, work, variant, clock_for(live.device)).total
        for label, variant in variants.items()
    }


def equal_memory(
    lab: Lab, model: str, variants: Mapping[str, Variant], *, budget: float, new: int
) -> Rows:
    """The largest batch of each variant that fits in `budget` bytes, and what comes out of it.

    Raises:
        Skipped: no GPU, or one with less memory than the budget.
        ValueError: not even one prompt fits.
    """
    if not lab.on_cuda:
        raise Skipped("a budget of memory is held by a GPU's allocator alone")
    total = torch.cuda.get_device_properties(lab.device).total_memory
    if budget > total:
        raise Skipped(f"the GPU has {total / 1e9:.0f} GB")
    live, visual = lab.model(model), lab.pictures(model, 1)
    rows = []
    for label, variant in variants.items():
        runs: dict[int, Run] = {}

        def attempt(batch: int, variant: Variant = variant, runs: dict[int, Run] = runs) -> int:
            work = Workload(visual, 64, new, batch)
            lab.sweep()
            try:
                inputs = random_inputs(live, work)
                run = generate_once(live, inputs, work, variant, clock_for(lab.device))
            except torch.OutOfMemoryError as error:
                raise OutOfBudget from error
            runs[batch] = run
            return run.peak or 0

        torch.cuda.set_per_process_memory_fraction(budget / total, lab.device)
        try:
            with without_plans():  # a plan for each new length would be half of the time
                batch, peak = largest_batch(attempt, budget)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, lab.device)
        run = runs[batch]
        work = Workload(visual, 64, new, batch)
        rows.append(
            _what(lab, model, work)
            | {"method": label, "budget_bytes": budget, "rounds": 1, "e2e_ms": run.total}
            | {"tokens_per_second": 1000 * batch * new / run.total}
            | {"peak_memory_bytes": peak, "ttft_ms": run.ttft}
        )
    return rows


def where_time_goes(lab: Lab, model: str, variants: Mapping[str, Variant], *, batch: int) -> Rows:
    """Operators and kernels of one prefill and one decode step, under torch's profiler."""
    work = Workload(lab.pictures(model, 1), 64, 16, batch)
    found = operators(lab.model(model), work, variants)
    return [_what(lab, model, work) | entry for entry in found]


def timeline(lab: Lab, model: str, variants: Mapping[str, Variant], *, batch: int) -> Rows:
    """When which kernel ran, in one prefill and one decode step."""
    work = Workload(lab.pictures(model, 1), 64, 16, batch)
    found = timelines(lab.model(model), work, variants)
    return [_what(lab, model, work) | entry for entry in found]


def _what(lab: Lab, model: str, work: Workload) -> dict[str, Any]:
    return {
        "model": lab.named(model),
        "weights": lab.weights(model),
        "dtype": str(lab.dtype).removeprefix("torch."),
        "visual_tokens": work.visual,
        "text_tokens": work.text,
        "new_tokens": work.new,
        "batch_size": work.batch,
    }
