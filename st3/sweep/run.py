"""Run a sweep: the untrimmed answers once, then cell after cell, over all processes there are."""

from __future__ import annotations

import math
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from st3.batch.ranks import Ranks
from st3.families.base import visual_mask
from st3.families.meta import meta_model
from st3.families.parts import find_parts
from st3.inference.device_map import home
from st3.interrupts import noticed
from st3.methods import Method, make_method
from st3.profiling.clocks import clock_for
from st3.profiling.costs import Costs, costs_of, pictures_in
from st3.profiling.course import schedule_of
from st3.profiling.macs import MacCounter
from st3.profiling.picture import picture_of
from st3.profiling.runs import Variant, generate_once, random_inputs
from st3.profiling.shape import Workload
from st3.sweep.fidelity import Outcome, Reference, accuracy, marks, outcomes, references, summary
from st3.sweep.folder import BASELINE, append_cell, open_folder, read_cells
from st3.sweep.grid import Cell, signature
from st3.sweep.questions import Question

_TIMED_RUNS, _TIMED_TOKENS = 3, 8
_SHOWN = 3  # differences kept for each cell


class Sweep:
    """A model, its questions and their untrimmed answers, ready to run cells.

    Attributes:
        seconds: what those answers took: about what a cell takes, which asks the same questions.
    """

    def __init__(
        self, model: Any, processor: Any, questions: Sequence[Question], *, batch: int,
        max_new_tokens: int,
    ) -> None:  # fmt: skip
        self.model, self.processor, self.max_new_tokens = model, processor, max_new_tokens
        began = time.perf_counter()
        self.references: list[Reference] = references(
            model, processor, questions, batch=batch, max_new_tokens=max_new_tokens
        )
        self.seconds = time.perf_counter() - began
        empty = meta_model(model.config)
        self.counter = MacCounter(empty)
        self._parts = find_parts(empty)
        self.work = self._typical(questions)
        self.picture = picture_of(model.config, self.work.picture)
        self.full = self._costs(make_method("none"))
        timed = replace(self.work, new=_TIMED_TOKENS)
        self._timed, self._inputs = timed, random_inputs(model, timed)

    def baseline(self) -> dict[str, Any]:
        """The untrimmed model: what every cell is compared with."""
        right = [
            text == question.answer.strip()
            for reference in self.references
            for question, text in zip(reference.questions, reference.texts, strict=True)
            if question.answer is not None
        ]
        return (
            {"questions": sum(len(reference.questions) for reference in self.references)}
            | accuracy(right)
            | self._times(None)
            | {
                "visual_tokens": self.work.visual,
                "text_tokens": self.work.text,
                "answer_tokens": self.work.new,
            }
        )

    def run(self, cell: Cell) -> dict[str, Any]:
        """All figures of one cell."""
        method = cell.method
        cost = self._costs(method)
        found: list[Outcome] = []
        differences = []
        for reference in self.references:
            part = outcomes(self.model, self.processor, reference, method, self.max_new_tokens)
            found += part
            differences += [
                {"question": question.label, "untrimmed": text, "trimmed": outcome.text}
                for question, text, outcome in zip(
                    reference.questions, reference.texts, part, strict=True
                )
                if not outcome.same
            ]
        times = self._times(method)
        return {
            **describe_cell(cell),
            "mean_keep": self._mean_keep(method),
            "prefill_macs_ratio": cost.prefill_macs / self.full.prefill_macs,
            "kv_ratio": cost.kv_bytes[0] / self.full.kv_bytes[0],
            "kv_mean_ratio": sum(cost.kv_bytes) / sum(self.full.kv_bytes),
            **times,
            "answer_ms": times["ttft_ms"] + (self.work.new - 1) * times["tpot_ms"],
            **summary(found),
            **marks([outcome.same for outcome in found], [outcome.right for outcome in found]),
            "differences": differences[:_SHOWN],
        }

    def _typical(self, questions: Sequence[Question]) -> Workload:
        """A prompt of median length, a picture of median area, an answer of mean length."""
        sizes = sorted((question.picture.size for question in questions), key=math.prod)
        size = sizes[len(sizes) // 2]
        placeholders = find_parts(self.model).visual_ids
        text: list[int] = []
        answers: list[int] = []
        for reference in self.references:
            ids, mask = reference.inputs["input_ids"], reference.inputs["attention_mask"]
            visual = visual_mask(placeholders, ids)
            text += (mask.bool() & ~visual).sum(1).tolist()
            answers += reference.lengths
        new = max(2, round(statistics.fmean(answers)))
        tokens = picture_of(self.model.config, size).tokens
        return Workload(tokens, round(statistics.median(text)), new, picture=size)

    def _costs(self, method: Method) -> Costs:
        schedule, element = schedule_of(method, self._parts, self.work), self.model.dtype.itemsize
        return costs_of(
            self.counter, self.picture, schedule, self.work, element, method.kv_cache_dtype
        )

    def _mean_keep(self, method: Method) -> float:
        """Of the visual tokens, in a layer on average, those that never enter one counted."""
        schedule = schedule_of(method, self._parts, self.work)
        pictures = pictures_in(self.work, self.picture)
        enter = schedule.entering.of_alike(self.work.visual, pictures, self.picture.piece)
        return schedule.mean_keep * enter / self.work.visual

    def _times(self, method: Any) -> dict[str, float]:
        """Medians of a few runs of one prompt, after a warm-up: cells are not interleaved."""
        clock = clock_for(home(self.model))
        runs = [
            generate_once(self.model, self._inputs, self._timed, Variant(method), clock)
            for _ in range(1 + _TIMED_RUNS)
        ][1:]
        return {
            "ttft_ms": statistics.median(run.ttft for run in runs),
            "tpot_ms": statistics.median(step for run in runs for step in run.steps),
        }


def run_cells(
    folder: Path,
    settings: dict[str, Any],
    cells: Sequence[Cell],
    make: Callable[[], Sweep],
    ranks: Ranks,
    on_cell: Callable[[int, int, str], None] = lambda done, total, spec: None,
    on_estimate: Callable[[float, int], None] = lambda seconds, cells: None,
) -> dict[str, Any]:
    """Run what has not been run yet, and put everything together.

    Args:
        folder: of this sweep; other settings in it are refused.
        settings: all that decides the results.
        cells: of the grid.
        make: loads the model; called only if something is left to run.
        ranks: which process this is.
        on_cell: told the number of finished cells, of all, and the one that begins.
        on_estimate: told once, before the first cell, about how many seconds are left and for how
            many cells of all processes; by the untrimmed answers' time.

    Returns:
        `baseline`, and `cells` in the order of the grid: finished ones, those that cannot be, and
        those that are the same as another; unfinished ones are left out. `interrupted` says
        whether Ctrl-C ended it.

    Raises:
        FolderError, ValueError: see `open_folder`, `append_cell` and `read_cells`.
    """
    if ranks.rank == 0:
        open_folder(folder, settings)
    ranks.wait()
    layers = settings["layers"]
    leaders: dict[tuple[object, ...], Cell] = {}
    for cell in cells:
        if cell.problem is None:
            leaders.setdefault(signature(cell, layers), cell)
    finished = read_cells(folder)
    wanted = [BASELINE, *(cell.spec for cell in leaders.values())]
    left = [spec for spec in wanted if spec not in finished]
    mine = left[ranks.rank :: ranks.world]
    by_spec = {cell.spec: cell for cell in leaders.values()}
    interrupted = False
    try:
        with noticed(signal.SIGINT) as interrupts:
            sweep = make() if mine else None
            cells_left = len(left) - (BASELINE in left)
            if sweep is not None and cells_left:
                on_estimate(sweep.seconds * sum(spec != BASELINE for spec in mine), cells_left)
            for number, spec in enumerate(mine):
                if interrupts.came:
                    raise KeyboardInterrupt
                assert sweep is not None
                on_cell(len(wanted) - len(left) + number * ranks.world, len(wanted), spec)
                row = (
                    {"spec": BASELINE, **sweep.baseline()}
                    if spec == BASELINE
                    else _run(sweep, by_spec[spec])
                )
                with interrupts.held():
                    append_cell(folder, row)
    except KeyboardInterrupt:
        if ranks.world > 1:
            raise
        interrupted = True
    ranks.wait()
    finished = read_cells(folder)
    rows = []
    for cell in cells:
        if cell.problem is not None:
            why = {"problem": cell.problem, "largest_ratio": cell.largest_ratio}
            rows.append(describe_cell(cell) | why)
            continue
        leader = leaders[signature(cell, layers)]
        if leader.spec in finished:
            same = {} if leader == cell else {"same_as": leader.spec}
            rows.append(finished[leader.spec] | describe_cell(cell) | same)
    return {
        "baseline": finished.get(BASELINE), "cells": rows, "interrupted": interrupted,
        "total": len(cells),
    }  # fmt: skip


def _run(sweep: Sweep, cell: Cell) -> dict[str, Any]:
    """A cell's figures.

    Among many methods one that cannot be for these questions says so, and the others go on.
    """
    try:
        return sweep.run(cell)
    except ValueError as error:
        if cell.budget is None:
            raise
        return describe_cell(cell) | {"problem": str(error), "largest_ratio": None}


def describe_cell(cell: Cell) -> dict[str, Any]:
    """What a cell is, in a row."""
    return {
        "spec": cell.spec,
        "stride": cell.stride,
        "ratio": cell.ratio,
        "tau": cell.tau,
        "final_keep": cell.final_keep,
        "budget_tokens": cell.budget,
    }
