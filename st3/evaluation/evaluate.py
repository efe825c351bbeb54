"""All cells of an evaluation, one after another: answered, scored, put together.

The model is loaded once, for the first cell with something left to ask, and answers are on the
disk before the next batch begins. Scoring comes after, from the files alone and in one process, so
that it is the same however often a run was stopped and whoever answered.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from st3.batch.asking import Course
from st3.batch.ranks import Ranks
from st3.batch.row import Result
from st3.evaluation.results import Coster, Row, Score, Unscored, compare, make_row
from st3.evaluation.run import Cell, Exam, answer_cell, read_answers
from st3.files import make_folder, plainly, write_text

SCORES, SUBMISSIONS = "scores", "submissions"
"""Folders inside the output: what was scored already, and the files that tasks write."""


class Scored(Exam, Protocol):
    """A task that scores its answers."""

    def score(self, answers: Sequence[Row], folder: Path) -> Score:
        """All its answers, in order; files of its own go into the folder.

        Raises:
            Unscored: it cannot.
        """
        ...


class Bar(Protocol):
    """What is told while a cell is answered."""

    def begin(self, before: int, mine: int) -> None:
        """So many were there, so many are asked now."""
        ...

    def note(self, results: Sequence[Result], course: Course) -> None:
        """These were written."""
        ...


def evaluate(
    folder: Path,
    pairs: Sequence[tuple[Any, Cell]],
    load: Callable[[], tuple[Any, Any]],
    ranks: Ranks,
    coster: Coster,
    model: str,
    bar: Callable[[str], AbstractContextManager[Bar]],
    *,
    batch_size: int | None = None,
    workers: int = 0,
    retry: bool = False,
) -> dict[str, Any]:
    """Answer and score every cell.

    Args:
        folder: of the output.
        pairs: cells and their tasks, each a `Scored`.
        load: the model and its processor; called at most once.
        coster: counts what methods cost.
        model: its name, for published figures.
        bar: opened for each cell.
        batch_size, workers, retry: see `answer_cell`.

    Returns:
        `rows`, see `st3.evaluation.results`, and `interrupted`; of other processes than the first
        the rows are empty.

    Raises:
        ResultsError, ValueError: see `answer_cell`.
    """
    kept: list[tuple[Any, Any]] = []

    def once() -> tuple[Any, Any]:
        if not kept:
            kept.append(load())
        return kept[0]

    interrupted = False
    for number, (exam, cell) in enumerate(pairs, start=1):
        course = Course()
        with bar(f"{cell.task}, {cell.label} ({number} of {len(pairs)})") as told:
            run = answer_cell(
                folder, cell, exam, once, ranks, course,
                batch_size=batch_size, workers=workers, retry=retry, on_begin=told.begin,
                on_results=partial(_note, told, course),
            )  # fmt: skip
        if run.interrupted:
            interrupted = True
            break
    if ranks.rank:
        return {"rows": [], "interrupted": interrupted}
    rows: list[Row] = []
    scores: dict[str, Score] = {}
    for exam, cell in pairs:
        answers = read_answers(folder, cell, len(exam.ids))
        score: Score | str | None = None
        if len(answers) == len(exam.ids):
            try:
                score = _scored(folder, exam, cell, answers, now=not interrupted)
            except Unscored as error:  # the other cells are not to be lost for it
                score = str(error)
        if isinstance(score, Score):
            scores[cell.name] = score
        costs = coster.ratios(cell.method, answers)
        rows.append(
            make_row(model, cell.task, cell.label, len(exam.ids), answers, score, costs, cell.name)
        )
    compare(rows, scores)
    return {"rows": rows, "interrupted": interrupted}


def _note(told: Bar, course: Course, results: Sequence[Result]) -> None:
    told.note(results, course)


def _scored(
    folder: Path, exam: Scored, cell: Cell, answers: Sequence[Row], *, now: bool
) -> Score | None:
    """The score of a whole cell. It is kept, since captions take minutes, by what was answered:
    equal answers are scored once.

    Args:
        now: or whoever pressed Ctrl-C waits for nothing: then None where none is kept.
    """
    said = [(row["row"], row.get("answer"), row.get("loss"), row.get("error")) for row in answers]
    asked = [cell.settings["task"], cell.settings["versions"]]
    text = json.dumps([asked, said], sort_keys=True, default=str)
    stamp = hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]
    path = folder / SCORES / f"{cell.task}--{stamp}.json"
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        found["values"] = None if found["values"] is None else tuple(found["values"])
        return Score(**found)
    if not now:
        return None
    submissions = folder / SUBMISSIONS / f"{cell.task}--{stamp}"
    for each in (path.parent, submissions):
        with plainly("write into", each):
            make_folder(each)
    score = exam.score(answers, submissions)
    with plainly("write", path):
        write_text(path, json.dumps(dataclasses.asdict(score)) + "\n")
    return score
