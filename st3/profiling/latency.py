"""Time variants side by side: one process, interleaved A B C A B C, warm-up left out.

A run with a counter in place of the clock tells how many operations a variant launches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from st3.inference.device_map import home
from st3.profiling.clocks import LaunchCounter, clock_for
from st3.profiling.runs import Run, Variant, generate_once, random_inputs
from st3.profiling.shape import Workload

_WARM_UP = 4  # tokens


@dataclass(frozen=True)
class Measured:
    """All runs of a variant.

    Attributes:
        runs: in the order in which they were made.
        launched: what a run of few tokens launches, operations in place of milliseconds; None where
            a compiled step hides them.
        compiling: seconds of the first run of all, compilation included; None where there is none.
    """

    runs: tuple[Run, ...]
    launched: Run | None
    compiling: float | None = None

    def until(self, new: int) -> Measured:
        """The same runs as far as their first `new` tokens."""
        return replace(self, runs=tuple(run.until(new) for run in self.runs))


def measure(
    model: Any,
    work: Workload,
    variants: Mapping[str, Variant],
    *,
    repeats: int,
    min_seconds: float,
    on_run: Callable[[str, int], None] = lambda name, done: None,
) -> tuple[dict[str, Measured], bool]:
    """Time every variant.

    Args:
        model: on its device, in its dtype.
        work: prompts and answers.
        variants: label -> variant, see `beside_stock`. Operations are counted without CUDA graphs.
        repeats: rounds at least.
        min_seconds: go on with rounds until each variant has had so long.
        on_run: told the label and the number of finished rounds before each run.

    Returns:
        Label -> runs; and whether Ctrl-C ended it early. Then every variant has as
        many runs as there were whole rounds, and nothing is returned if there was none.

    Raises:
        ValueError: see `random_inputs`.
    """
    inputs = random_inputs(model, work)
    first: dict[str, tuple[Run | None, float | None]] = {}
    runs: dict[str, list[Run]] = {name: [] for name in variants}
    try:
        for name, variant in variants.items():
            on_run(name, 0)
            first[name] = _warm_up(model, inputs, work, variant)
        started, done = time.perf_counter(), 0
        while done < repeats or time.perf_counter() - started < min_seconds * len(variants):
            finished = {}
            for name, variant in variants.items():
                on_run(name, done)
                clock = clock_for(home(model))
                finished[name] = generate_once(model, inputs, work, variant, clock)
            done += 1
            for name, run in finished.items():
                runs[name].append(run)
        interrupted = False
    except KeyboardInterrupt:
        interrupted = True
    if not all(runs.values()):
        return {}, interrupted
    found = {name: Measured(tuple(runs[name]), *first[name]) for name in variants}
    return found, interrupted


def _warm_up(
    model: Any, inputs: dict[str, Any], work: Workload, variant: Variant
) -> tuple[Run | None, float | None]:
    """Run a variant for the first time: what a few of its tokens launch, and, where something is
    compiled, which takes a run of full length, the seconds that it took.
    """
    clock = clock_for(home(model))
    short = replace(work, new=min(work.new, _WARM_UP))
    launched = None
    if not variant.static:
        plain = replace(variant, cuda_graphs=False, compile="off")
        with LaunchCounter() as counter:
            launched = generate_once(model, inputs, short, plain, counter)
    started = time.perf_counter()
    generate_once(model, inputs, work if variant.compiles else short, variant, clock)
    return launched, time.perf_counter() - started if variant.compiles else None
