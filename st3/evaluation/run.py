"""One cell, a task under a method: its documents are answered into a file, and gone on with.

A file belongs to what decides its answers: model, method, dtype, versions, data. Whatever of these
changes makes another file, so that answers never mix; how many documents are asked, batches and
processes do not.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

from st3.batch.answering import batches
from st3.batch.asking import Asker, Course
from st3.batch.ranks import Ranks
from st3.batch.row import Result, Row
from st3.batch.run import Run, answer_file
from st3.batch.sources import Source
from st3.evaluation.likelihood import Weigher
from st3.evaluation.questions import Answer, Question, QuestionPreparer, fingerprint, said
from st3.files import make_folder, plainly, read_rows
from st3.methods import Method

ANSWERS = "answers"
"""The folder of all cells' files, inside the output."""


class Exam(Protocol):
    """A task, as far as asking goes.

    Attributes:
        name: of the task.
        ids: of its requests: documents, or what could be answered to one, in their order.
        tokens: of an answer, at most.
        weighing: whether likelihoods are asked for and not answers.
        settings: what of the task decides the answers: version, data, prompt.
    """

    name: str
    ids: Sequence[str]
    tokens: int
    weighing: bool
    settings: dict[str, Any]

    def question(self, number: int) -> Question:
        """One request; what it shows is read now."""
        ...


@dataclass(frozen=True)
class Cell:
    """A task under a method.

    Attributes:
        label: of the method, as it was asked for. `method`: None is stock transformers.
        settings: all that decides the answers.
    """

    task: str
    label: str
    method: Method | None
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """Of its file: for people, and no other cell's."""
        word = re.sub(r"[^a-z0-9.=%]+", "-", self.label.lower()).strip("-")
        text = json.dumps(self.settings, sort_keys=True, default=str)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return f"{self.task}--{word[:60]}--{digest}"

    def file(self, folder: Path) -> Path:
        """Where its answers are."""
        return folder / ANSWERS / f"{self.name}.jsonl"


def answer_cell(
    folder: Path,
    cell: Cell,
    exam: Exam,
    load: Callable[[], tuple[Any, Any]],
    ranks: Ranks,
    course: Course,
    *,
    batch_size: int | None = None,
    workers: int = 0,
    retry: bool = False,
    on_begin: Callable[[int, int], None] = lambda before, mine: None,
    on_results: Callable[[Sequence[Result]], None] = lambda results: None,
) -> Run:
    """Answer what has not been answered yet; each process its share.

    Args:
        folder: of the output.
        load: the model and its processor; called only if something is left to ask.
        course: is kept up to date.
        batch_size, workers: see `answer_all`.
        retry, on_begin, on_results: see `answer_file`.

    Raises:
        ResultsError, ValueError: see `answer_file`; or the model refuses all.
    """
    path = cell.file(folder)
    with plainly("write into", path.parent):
        make_folder(path.parent)
    rows = [Row(name, "", number=number) for number, name in enumerate(exam.ids)]

    def answering(left: Sequence[Row]) -> Generator[list[Result], None, None]:
        model, processor = load()
        numbers = [row.number for row in left]
        yield from answers(
            model, processor, exam, numbers, cell.method, course,
            batch_size=batch_size, workers=workers,
        )  # fmt: skip

    return answer_file(
        Source(exam.name, rows), path, cell.settings, answering, ranks,
        retry=retry, on_begin=on_begin, on_results=on_results,
    )  # fmt: skip


def answers(
    model: Any,
    processor: Any,
    exam: Exam,
    numbers: Sequence[int],
    method: Method | None,
    course: Course,
    *,
    batch_size: int | None = None,
    workers: int = 0,
) -> Generator[list[Result], None, None]:
    """Answers to some requests of a task, as they are finished, some at a time."""
    hashes: dict[int, str] = {}

    def coming() -> Generator[Question, None, None]:
        for number in numbers:
            question = exam.question(number)
            hashes[number] = fingerprint(said(question))
            yield question

    asking: type[Asker] = Weigher if exam.weighing else Asker
    spent = 0.0
    for found in batches(
        model, processor, coming(), method,
        preparing=QuestionPreparer, asking=asking, max_new_tokens=exam.tokens,
        batch_size=batch_size, workers=workers, course=course,
    ):  # fmt: skip
        now = course.prefill + course.decode
        each, spent = (now - spent) / len(found), now
        yield [_answer(result, hashes.pop(result.number), each) for result in found]


def _answer(result: Result, prompt: str, seconds: float) -> Answer:
    if isinstance(result, Answer):
        return replace(result, prompt=prompt, seconds=seconds)
    plain = {field.name: getattr(result, field.name) for field in fields(Result)}
    return Answer(**plain, prompt=prompt, seconds=seconds)


def read_answers(folder: Path, cell: Cell, count: int) -> list[dict[str, Any]]:
    """The finished of the first `count` requests of a cell, in their order.

    Raises:
        ValueError: not readable.
    """
    path = cell.file(folder)
    with plainly("read", path):
        found = {row["row"]: row for row in read_rows(path)}
    return [found[number] for number in sorted(found) if number < count]
