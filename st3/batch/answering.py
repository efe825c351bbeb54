"""Many questions, one answer each: an iterator in, an iterator out.

for result in st3.answer_all(model, processor, [{"image": "a.jpg", "prompt": "What is it?"}]):
    print(result.id, result.answer or result.error)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from time import perf_counter
from typing import Any

from transformers import PreTrainedModel, ProcessorMixin

from st3.batch.ahead import prepared
from st3.batch.collating import Pool
from st3.batch.leaving import Decoded, decode_rows
from st3.batch.memory import Fit, Sizes, out_of_memory
from st3.batch.preparing import Prepared, Preparer, one_line, padding
from st3.batch.row import Result, Row, make_row
from st3.engine.session import TrimSession
from st3.engine.trim import trim
from st3.inference.fitting import pads, room_of
from st3.methods import Method, make_method

_WAITING = 4  # batches' rows that a batch is chosen from
_WAITING_BYTES = 2_000_000_000


@dataclass
class Course:
    """What a run has done so far, and where its time went.

    Attributes:
        answered, errors: rows.
        pictures: seconds that the model waited for pictures to be decoded and processed.
        prefill, decode: seconds. `wasted`: of batches that did not fit into memory.
        batches: that were answered. `row_steps`: rows times decode steps that were computed.
        new_tokens: of all answers. `shown`: pictures and videos of all rows that were answered.
        fit: what the first batch said of memory; None before it, or where nothing is trimmed.
    """

    answered: int = 0
    errors: int = 0
    pictures: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    wasted: float = 0.0
    batches: int = 0
    row_steps: int = 0
    new_tokens: int = 0
    shown: int = 0
    fit: Fit | None = None

    def add(self, other: Course) -> None:
        """What another process has done."""
        for name in (field.name for field in fields(self) if field.name != "fit"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.fit = self.fit or other.fit

    def shares(self) -> dict[str, float]:
        """Of the time in `pictures`, `prefill` and `decode`; zeros before there is any."""
        whole = self.pictures + self.prefill + self.decode
        names = ("pictures", "prefill", "decode")
        return {name: getattr(self, name) / whole if whole else 0.0 for name in names}


def answer_all(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    rows: Iterable[Row | Mapping[str, Any]],
    method: str | Method | None = "st3",
    *,
    prompt: str | None = None,
    max_new_tokens: int = 128,
    batch_size: int | None = None,
    workers: int = 0,
    frames: int | None = None,
    fps: float | None = None,
    cuda_graphs: bool = False,
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
        course: is kept up to date.
        parameters: of the method, see `st3.trim`.

    Raises:
        ValueError: a method that does not fit the model; or the model refuses every row of the
            first batch.
    """
    waiting: dict[int, Result] = {}
    order = _Order(rows, prompt)
    given = batches(
        model, processor, order, method, max_new_tokens=max_new_tokens, batch_size=batch_size,
        workers=workers, frames=frames, fps=fps, cuda_graphs=cuda_graphs, course=course,
        **parameters,
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
        for number, row in enumerate(self.rows):
            self.numbers.append(number)
            if isinstance(row, Row):
                yield replace(row, number=number)
            else:
                yield make_row(row, number, self.prompt)


def batches(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    rows: Iterable[Row],
    method: str | Method | None = "st3",
    *,
    max_new_tokens: int = 128,
    batch_size: int | None = None,
    workers: int = 0,
    frames: int | None = None,
    fps: float | None = None,
    cuda_graphs: bool = False,
    course: Course | None = None,
    **parameters: Any,
) -> Generator[list[Result], None, None]:
    """The same as they are finished, some at a time: for whoever puts them in order himself.

    Numbers of rows must differ.
    """
    most = Sizes(model, batch_size if pads(processor) else 1).most
    preparer = Preparer(processor, room_of(model), frames, fps)
    with closing(prepared(rows, preparer, workers, max(2 * workers, most))) as coming:
        yield from answer_prepared(
            model, processor, coming, method, max_new_tokens=max_new_tokens,
            batch_size=batch_size, cuda_graphs=cuda_graphs, course=course, **parameters,
        )  # fmt: skip


def answer_prepared(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    coming: Iterator[Prepared],
    method: str | Method | None = "st3",
    *,
    max_new_tokens: int = 128,
    batch_size: int | None = None,
    cuda_graphs: bool = False,
    course: Course | None = None,
    **parameters: Any,
) -> Generator[list[Result], None, None]:
    """The same of rows that somebody else makes ready."""
    if isinstance(method, str):
        method = make_method(method, **parameters)
    course = course if course is not None else Course()
    sizes = Sizes(model, batch_size if pads(processor) else 1)
    asker = _Asker(model, processor, method, max_new_tokens, sizes, course)
    pool, more = Pool(), True
    with asker.opened(cuda_graphs):
        while more or pool.rows:
            while more and pool.rows < _WAITING * sizes.most and pool.bytes < _WAITING_BYTES:
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


class _Asker:
    """Asks the model a batch, in smaller ones where it must be."""

    def __init__(
        self, model: Any, processor: Any, method: Method | None, tokens: int, sizes: Sizes,
        course: Course,
    ) -> None:  # fmt: skip
        self.model, self.processor, self.method = model, processor, method
        self.tokens, self.sizes, self.course = tokens, sizes, course
        self.limit = room_of(model).tokens
        self._session: TrimSession | None = None  # of all batches
        self.pad = padding(processor)

    @contextmanager
    def opened(self, cuda_graphs: bool) -> Iterator[None]:
        """Trimming stays open over all batches where steps are recorded, and else over none."""
        if self.method is None or not cuda_graphs:
            yield
            return
        with trim(
            self.model, self.method, max_new_tokens=self.tokens, cuda_graphs=True
        ) as self._session:
            yield

    def fits(self, rows: int, prompt: int) -> bool:
        """Whether so many rows with prompts of so many tokens do."""
        return self.sizes.fits(rows, prompt + self._new(prompt))

    def _new(self, prompt: int) -> int:
        """Of an answer to a prompt of so many tokens, at most."""
        return min(self.tokens, self.limit - prompt)

    def ask(self, rows: list[Prepared]) -> list[Result]:
        """Results of all of them.

        Raises:
            RuntimeError, ValueError: nothing has been answered yet, and the model refuses them all.
        """
        found, refused = self._ask(rows)
        if refused is not None and not self.course.answered:
            raise refused
        return found

    def _ask(self, rows: list[Prepared]) -> tuple[list[Result], Exception | None]:
        """Results, and what was wrong if that is so of all of them."""
        began = perf_counter()
        try:
            return self._answered(rows), None
        except (RuntimeError, ValueError, MemoryError) as error:
            lacking = out_of_memory(error)
            if not lacking and "CUDA error" in str(error):  # nothing works after it
                raise
            why: Exception = error.with_traceback(None)  # which holds the batch's tensors
        self.course.wasted += perf_counter() - began
        longest = max(row.tokens for row in rows)
        if lacking:
            self.sizes.shrink(len(rows), longest + self._new(longest))
        if len(rows) == 1:
            self.course.errors += 1
            row, line = rows[0].row, one_line(why)
            if lacking:
                line = f"out of memory, alone: {rows[0].tokens} tokens ({line})"
            return [Result(row.number, row.id, error=line)], why
        half = (len(rows) + 1) // 2 if lacking else 1
        parts = [rows[start : start + half] for start in range(0, len(rows), half)]
        all_found, refusals = [], []
        for part in parts:
            found, refused = self._ask(part)
            all_found += found
            refusals.append(refused)
        return all_found, refusals[0] if all(refusals) else None

    def _answered(self, rows: list[Prepared]) -> list[Result]:
        longest = max(row.tokens for row in rows)
        new = self._new(longest)
        first = self.sizes.budget is None
        if first:
            self.sizes.begin()
        whole = self._session
        trimmed: AbstractContextManager[Any] = nullcontext(whole)
        if self.method is not None and whole is None:
            trimmed = trim(self.model, self.method, max_new_tokens=new)
        with trimmed as session:

            def learn() -> None:
                if first:
                    self.course.fit = self.sizes.learn(len(rows), longest + new, session, longest)

            inputs = [row.inputs for row in rows]
            decoded = decode_rows(
                self.model, inputs, self.pad, new, session, learn, leave=whole is None
            )
        self._note(decoded)
        self.course.shown += sum(len(row.row.images) or 1 for row in rows)
        return [self._result(row, n, decoded) for n, row in enumerate(rows)]

    def _note(self, decoded: Decoded) -> None:
        course = self.course
        course.prefill += decoded.prefill
        course.decode += decoded.decode
        course.row_steps += decoded.steps
        course.batches += 1
        course.answered += len(decoded.tokens)
        course.new_tokens += sum(map(len, decoded.tokens))

    def _result(self, row: Prepared, place: int, decoded: Decoded) -> Result:
        tokens, kept = decoded.tokens[place], decoded.kept
        text = self.processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()
        return Result(
            row.row.number,
            row.row.id,
            answer=text,
            prompt_tokens=row.tokens,
            visual_tokens=row.visual,
            kept_visual_tokens=round(kept[place], 2) if kept else float(row.visual),
            new_tokens=len(tokens),
            finish_reason="stop" if decoded.ended[place] else "length",
            token_ids=tuple(tokens),
        )
