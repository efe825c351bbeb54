"""Ways to answer, each in a process of its own and maybe an environment of its own, side by side.

Same weights, same prompts, same threads; they take turns, and only one computes at a time. What
cannot be had is a row that says so, and the others go on. Which ways there are, and how their
environments are made: docs/benchmarks/peers.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from st3.benchmark.cells import Rows
from st3.benchmark.suite import Cell
from st3.profiling.figures import samples_of, timed
from st3.profiling.latency import Measured
from st3.profiling.outcome import Run, Unavailable
from st3.profiling.peer import PeerProcess
from st3.profiling.runs import STOCK
from st3.profiling.shape import Workload


@dataclass(frozen=True)
class Way:
    """A way to answer.

    Attributes:
        python: an interpreter that has what the pipeline needs.
        pipeline: the file of its class, see `st3.profiling.peer_worker`.
        options: for the class.
        problem: why it cannot be had, if that is known before.
    """

    python: str
    pipeline: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True)
class Subject:
    """What is asked, and of what.

    Attributes:
        name: of the model; `weights`: "random" or "trained".
        config: of the model.
        folder: with its safetensors.
        prompts: inputs, all of one number of visual and text tokens but for a few of text.
        work: what rows say of them.
        end: the token that ends an answer; None: none does.
    """

    name: str
    weights: str
    config: Any
    folder: Path
    prompts: Sequence[dict[str, Any]]
    work: Workload
    end: int | None = None


@dataclass
class _Seen:
    """Of one way.

    Attributes:
        runs, answers: a round each; answers are cut where they end.
        peak: bytes of main memory, at most.
    """

    runs: list[Run] = field(default_factory=list)
    answers: list[list[list[int]]] = field(default_factory=list)
    peak: int | None = None


def cell(
    name: str, make: Callable[[Path], Subject], ways: Mapping[str, Way], dtype: torch.dtype, *,
    rounds: int, threads: int, folder: Path,
) -> Cell:  # fmt: skip
    """A cell for `st3.benchmark.run.run`.

    Args:
        name: of the cell.
        make: a subject, whose weights it may write into a folder.
        ways: label -> way; `stock` is what the others are held against.
        dtype, rounds, threads: how.
        folder: a temporary one.
    """

    def measure(_: Any) -> Rows:
        return side_by_side(make(folder), ways, dtype, rounds=rounds, threads=threads)

    return Cell(name, measure)


def side_by_side(
    subject: Subject, ways: Mapping[str, Way], dtype: torch.dtype, *, rounds: int, threads: int
) -> Rows:
    """A row a way; in each round all answer the same prompt, one after the other.

    Raises:
        Unavailable: stock itself cannot be had.
    """
    lost = {label: way.problem for label, way in ways.items() if way.problem is not None}
    seen: dict[str, _Seen] = {}
    with ExitStack() as stack:
        asked = {
            label: stack.enter_context(
                PeerProcess(
                    way.python, way.pipeline, subject.config, dtype, weights=subject.folder,
                    threads=threads, options=way.options,
                )
            )
            for label, way in ways.items()
            if label not in lost
        }  # fmt: skip
        first: dict[str, float] = {}
        for number in range(-1, rounds):  # the first one warms up
            prompt = subject.prompts[number % len(subject.prompts)]
            for label, peer in asked.items():
                if label in lost:
                    continue
                began = time.perf_counter()
                try:
                    run = peer.generate(prompt, subject.work)
                except Unavailable as why:
                    if label == STOCK:
                        raise
                    lost[label] = str(why).replace(ways[label].python, "its python")
                    continue
                if number < 0:
                    first[label] = time.perf_counter() - began
                    seen[label] = _Seen()
                    continue
                own = seen[label]
                own.runs.append(run)
                own.answers.append([_until(line, subject.end) for line in peer.tokens])
                own.peak = max(own.peak or 0, peer.peak) if peer.peak is not None else own.peak
        facts = {label: dict(peer.facts) for label, peer in asked.items()}
    measured = {
        label: Measured(tuple(own.runs), None) for label, own in seen.items() if label not in lost
    }
    rows: Rows = []
    for label in ways:
        row = _what(subject, dtype, threads) | {"method": label, "settings": facts.get(label, {})}
        if label in lost:
            nothing = timed(STOCK, measured, subject.work)
            rows.append(row | dict.fromkeys(nothing) | {"kept": None, "problem": lost[label]})
            continue
        found = measured[label]
        own = seen[label]
        rows.append(
            row
            | timed(label, measured, subject.work)
            | {"peak_process_bytes": own.peak, "rounds": len(own.runs)}
            | {"kept": _kept(own.answers, seen[STOCK].answers)}
            | {"ready_s": max(0.0, first[label] - _seconds(own.runs))}
            | {"samples": samples_of(label, subject.work, found)}
        )
    return rows


def _what(subject: Subject, dtype: torch.dtype, threads: int) -> dict[str, Any]:
    work = subject.work
    return {
        "model": subject.name, "weights": subject.weights, "threads": threads,
        "dtype": str(dtype).removeprefix("torch."), "visual_tokens": work.visual,
        "text_tokens": work.text, "new_tokens": work.new, "batch_size": work.batch,
        "prompts": len(subject.prompts),
    }  # fmt: skip


def _seconds(runs: Sequence[Run]) -> float:
    return statistics.median(run.total for run in runs) / 1000


def _until(tokens: list[int], end: int | None) -> list[int]:
    return tokens[: tokens.index(end)] if end in tokens else tokens


def _kept(own: Sequence[Any], stock: Sequence[Any]) -> float:
    """Share of answers that are stock's, token for token."""
    return statistics.fmean(mine == theirs for mine, theirs in zip(own, stock, strict=True))
