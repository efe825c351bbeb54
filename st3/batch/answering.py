"""Many questions, one answer each: an iterator in, an iterator out.

for result in st3.answer_all(model, processor, [{"image": "a.jpg", "prompt": "What is it?"}]):
    print(result.id, result.answer or result.error)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from time import perf_counter
from typing import Any

from transformers import PreTrainedModel, ProcessorMixin

from st3.batch.ahead import prepared
from st3.batch.asking import Asker, Course
from st3.batch.collating import Pool
from st3.batch.memory import Sizes
from st3.batch.preparing import Prepared, Preparer
from st3.batch.row import Result, Row, make_row
from st3.inference.fitting import pads, room_of
from st3.methods import Method, make_method

_WAITING = 4  # batches' rows that a batch is chosen from
WAITING_BYTES = 2_000_000_000
"""Of those, and as many again of rows that are ready before them."""


def answer_all(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    rows: Iterable[Row | Mapping[str, Any]],
    method: str | Method | type[Method] | None = "st3",
    *,
    prompt: str | None = None,
    max_new_tokens: int = 128,
    batch_size: int | None = None,
    workers: int = 0,
    frames: int | None = None,
    fps: float | None = None,
    cuda_graphs: bool = False,
    compile: str = "off",
    course: Course | None = None,
    **parameters: Any,
) -> Generator[Result, None, None]:
    """Answer questions about pictures or videos, greedily, in batches of like length.

    Rows are read a few batches ahead, and answers come in the order of rows. What is wrong with a
    row is its result's `error`; the others go on. The model is trimmed while a batch is computed,
    and not while the caller has the word.

    Args:
        model, processor: from `st3.load`.
        rows: `Row`s, or mappings with one of `image`, `images` (paths, URLs, bytes or PIL pictures)
            and `video` (a path), a `prompt`, and any `id`; their numbers count from 0.
        method: how to trim; None leaves everything to stock transformers.
        prompt: asked of every row that has none of its own.
        max_new_tokens: of an answer, at most.
        batch_size: rows at most; None: as many as memory allows.
        workers: processes that decode and process pictures ahead of the model; with any, the
            calling script needs its `if __name__ == "__main__":`, and rows must be picklable.
        frames, fps: which frames of a video are taken; None: the model's own choice.
        cuda_graphs: see `st3.trim`. Recordings serve all batches of one layout: the model then
            stays trimmed from the first batch to the end, and rows that have ended stay in theirs.
        compile: see `st3.trim`.
        course: is kept up to date.
        parameters: of the method, see `st3.trim`.

    Raises:
        ValueError: a method that does not fit the model, a parameter that it lacks, or a number
            that is too small; or the model refuses every row of the first batch.
    """
    waiting: dict[int, Result] = {}
    order = _Order(rows, prompt)
    given = batches(
        model, processor, order, method, max_new_tokens=max_new_tokens, batch_size=batch_size,
        workers=workers, frames=frames, fps=fps, cuda_graphs=cuda_graphs, compile=compile,
        course=course, **parameters,
    )  # fmt: skip
    for found in given:
        waiting |= {result.number: result for result in found}
        while order.numbers and order.numbers[0] in waiting:
            yield waiting.pop(order.numbers.popleft())


class _Order:
    """Rows as they come, and the numbers of those that nobody has got back yet."""

    def __init__(self, rows: Iterable[Row | Mapping[str, Any]], prompt: str | None) -> None:
        self.rows, self.prompt = rows, prompt
        self.numbers: deque[int] = deque()

    def __iter__(self) -> Iterator[Row]:
        row: Any  # whatever came instead
        for number, row in enumerate(self.rows):
            self.numbers.append(number)
            if isinstance(row, Row):
                yield replace(row, number=number)
            elif isinstance(row, Mapping):
                yield make_row(row, number, self.prompt)
            else:
                what = f"a row is a mapping or a Row, and this is of type {type(row).__name__}"
                yield Row(number, "", number=number, problem=what)


def batches(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    rows: Iterable[Row],
    method: str | Method | type[Method] | None = "st3",
    *,
    max_new_tokens: int = 128,
    batch_size: int | None = None,
    workers: int = 0,
    frames: int | None = None,
    fps: float | None = None,
    cuda_graphs: bool = False,
    preparing: type[Preparer] = Preparer,
    **options: Any,
) -> Generator[list[Result], None, None]:
    """The same as they are finished, some at a time: for whoever puts them in order himself.

    Numbers of rows must differ; `preparing` makes them ready, and `options` are those of
    `make_asker`.
    """
    for name, given, least in (
        ("max_new_tokens", max_new_tokens, 1),
        ("batch_size", batch_size, 1),
        ("workers", workers, 0),
    ):
        if given is not None and given < least:
            raise ValueError(f"{name}={given}: give at least {least}")
    asker = make_asker(
        model, processor, method, max_new_tokens=max_new_tokens, batch_size=batch_size, **options
    )
    preparer = preparing(processor, room_of(model), frames, fps)
    ahead = max(2 * workers, asker.sizes.most)
    with closing(prepared(rows, preparer, workers, ahead, WAITING_BYTES)) as coming:
        yield from answer_prepared(asker, coming, cuda_graphs)


def make_asker(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    method: str | Method | type[Method] | None = "st3",
    *,
    max_new_tokens: int = 128,
    batch_size: int | None = None,
    compile: str = "off",
    course: Course | None = None,
    asking: type[Asker] = Asker,
    **parameters: Any,
) -> Asker:
    """Who asks the model, and learns which batches fit; options as of `answer_all`."""
    if method is not None:
        method = make_method(method, **parameters)
    elif parameters:
        raise ValueError(f"method=None takes no parameters: leave out {', '.join(parameters)}")
    course = course if course is not None else Course()
    sizes = Sizes(model, batch_size if pads(processor) else 1)
    return asking(model, processor, method, max_new_tokens, sizes, course, compile)


def answer_prepared(
    asker: Asker, coming: Iterator[Prepared], cuda_graphs: bool = False
) -> Generator[list[Result], None, None]:
    """The same of rows that somebody else makes ready."""
    course, sizes, pool, more = asker.course, asker.sizes, Pool(), True
    with asker.opened(cuda_graphs):
        while more or pool.rows:
            while more and pool.rows < _WAITING * sizes.most and pool.bytes < WAITING_BYTES:
                began = perf_counter()
                row = next(coming, None)
                course.pictures += perf_counter() - began
                if row is None:
                    more = False
                elif row.problem is not None:
                    course.errors += 1
                    yield [Result(row.row.number, row.row.id, error=row.problem)]
                else:
                    pool.add(row)
            if pool.rows:
                yield asker.ask(pool.take(sizes.rows, asker.fits))
