"""Time variants side by side: one process, interleaved A B C A B C, warm-up left out.

A run with a counter in place of the clock tells how many operations a variant launches.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from st3.inference.device_map import home
from st3.profiling.clocks import LaunchCounter, clock_for
from st3.profiling.outcome import Run, Unavailable
from st3.profiling.runs import Variant, generate_once, random_inputs
from st3.profiling.shape import Workload

_WARM_UP = 4  # tokens


@dataclass(frozen=True)
class Measured:
    """All runs of a variant.

    Attributes:
        runs: in the order in which they were made.
        launched: what a run of few tokens launches, operations in place of milliseconds; None where
            a compiled step or another process hides them.
        compiling: seconds of compiling, recording or exporting before the first answer: those that
            the first run took and later ones do not; None where there is nothing of the kind.
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
    on_drop: Callable[[str, str], None] | None = None,
) -> tuple[dict[str, Measured], bool]:
    """Time every variant.

    Args:
        model: on its device, in its dtype.
        work: prompts and answers.
        variants: label -> variant, see `beside_stock`. Operations are counted without CUDA graphs.
        repeats: rounds at least.
        min_seconds: go on with rounds until each variant has had so long.
        on_run: told the label and the number of finished rounds before each run.
        on_drop: told the label of a variant that cannot be had, and why; the others go on.

    Returns:
        Label -> runs, of the variants that there are; and whether Ctrl-C ended it early. Then every
        variant has as many runs as there were whole rounds, and nothing is returned if there was
        none.

    Raises:
        ValueError: see `random_inputs`.
        Unavailable: a variant that cannot be had, where nobody is told.
    """
    inputs = random_inputs(model, work)
    first: dict[str, _First] = {}
    runs: dict[str, list[_Timed]] = {}

    def drop(name: str, why: Unavailable) -> None:
        if on_drop is None:
            raise why
        runs.pop(name, None)
        on_drop(name, str(why))

    try:
        for name, variant in variants.items():
            on_run(name, 0)
            try:
                first[name] = _warm_up(model, inputs, work, variant)
                runs[name] = []
            except Unavailable as why:
                drop(name, why)
        started, done = time.perf_counter(), 0
        while done < repeats or time.perf_counter() - started < min_seconds * len(runs):
            finished = {}
            for name in list(runs):
                on_run(name, done)
                try:
                    finished[name] = _timed(model, inputs, work, variants[name])
                except Unavailable as why:
                    drop(name, why)
            done += 1
            for name, run in finished.items():
                runs[name].append(run)
        interrupted = False
    except KeyboardInterrupt:
        interrupted = True
    if not all(runs.values()):
        return {}, interrupted
    return {name: _measured(first[name], timed) for name, timed in runs.items()}, interrupted


@dataclass(frozen=True)
class _Timed:
    """A run, and the seconds that all of it took: what comes before its answer, too."""

    run: Run
    seconds: float


@dataclass(frozen=True)
class _First:
    """A variant's first run.

    Attributes:
        launched: see `Measured`.
        seconds: of a run of full length, where it makes something ready; and those that had been
            spent on that in an earlier workload.
    """

    launched: Run | None
    seconds: float | None


def _timed(model: Any, inputs: dict[str, Any], work: Workload, variant: Variant) -> _Timed:
    clock = clock_for(home(model))
    started = time.perf_counter()
    run = generate_once(model, inputs, work, variant, clock)
    return _Timed(run, time.perf_counter() - started)


def _measured(first: _First, timed: list[_Timed]) -> Measured:
    compiling = None
    recorded = [one.run.recording for one in timed if one.run.recording is not None]
    if first.seconds is not None:
        later = statistics.median(one.seconds for one in timed)
        # Each `with` records anew, so later runs have that in them as well.
        again = statistics.median(recorded) / 1000 if recorded else 0.0
        compiling = max(first.seconds - later, 0.0) + again
    return Measured(tuple(one.run for one in timed), first.launched, compiling)


def _warm_up(model: Any, inputs: dict[str, Any], work: Workload, variant: Variant) -> _First:
    """Run a variant for the first time; and before that count what a few tokens launch."""
    short = replace(work, new=min(work.new, _WARM_UP))
    launched = None
    if variant.seen_through:
        plain = replace(variant, cuda_graphs=False, compile="off")
        with LaunchCounter() as counter:
            launched = generate_once(model, inputs, short, plain, counter)
    earlier = 0.0 if variant.peer is None else variant.peer.seconds
    run = _timed(model, inputs, work if variant.compiles else short, variant)
    ready = run.run.recording is not None or not variant.prepares
    return _First(launched, earlier + run.seconds if variant.compiles and ready else None)
