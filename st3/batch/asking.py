"""Asks a model a batch of rows: what it answers, what it refuses, and where memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from time import perf_counter
from typing import Any

from st3.batch.leaving import Decoded, decode_rows
from st3.batch.memory import Fit, Sizes, out_of_memory
from st3.batch.preparing import Prepared, one_line, padding
from st3.batch.row import Result
from st3.engine.session import TrimSession
from st3.engine.trim import trim
from st3.inference.fitting import room_of
from st3.methods import Method


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
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.fit = self.fit or other.fit

    def since(self, before: Course) -> Course:
        """What has been done after `before`, which was a copy of this."""
        new = {name: getattr(self, name) - getattr(before, name) for name in _COUNTS}
        return replace(self, **new)

    def shares(self) -> dict[str, float]:
        """Of the time in `pictures`, `prefill` and `decode`; zeros before there is any."""
        whole = self.pictures + self.prefill + self.decode
        names = ("pictures", "prefill", "decode")
        return {name: getattr(self, name) / whole if whole else 0.0 for name in names}


_COUNTS = [field.name for field in fields(Course) if field.name != "fit"]


class Asker:
    """Asks a model a batch, in smaller ones where it must be.

    Args:
        model, processor: from `st3.load`.
        method: how to trim; None leaves everything to stock transformers.
        tokens: of an answer, at most.
        sizes: which batches fit, which is learnt here.
        course: is kept up to date.
        compile: see `st3.trim`.
    """

    def __init__(
        self, model: Any, processor: Any, method: Method | None, tokens: int, sizes: Sizes,
        course: Course, compile: str = "off",
    ) -> None:  # fmt: skip
        self.model, self.processor, self.method = model, processor, method
        self.tokens, self.sizes, self.course = tokens, sizes, course
        self.compile = compile
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
            self.model,
            self.method,
            max_new_tokens=self.tokens,
            cuda_graphs=True,
            compile=self.compile,
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
            Exception: nothing has been answered yet, and the model refuses them all.
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
        except Exception as error:  # a model raises whatever it stumbles over
            lacking = out_of_memory(error)
            if not lacking and "CUDA error" in str(error):  # nothing works after it
                raise
            # Its traceback holds the batch's tensors.
            why = error.with_traceback(None) if lacking else error
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
        new = self.new_tokens(rows)
        first = self.sizes.budget is None
        if first:
            self.sizes.begin()
        whole = self._session
        trimmed: AbstractContextManager[Any] = nullcontext(whole)
        if self.method is not None and whole is None:
            trimmed = trim(self.model, self.method, max_new_tokens=new, compile=self.compile)
        with trimmed as session:

            def learn() -> None:
                if first:
                    self.course.fit = self.sizes.learn(len(rows), longest + new, session, longest)

            found = self.compute(rows, new, session, learn, leave=whole is None)
        self.course.batches += 1
        self.course.answered += len(rows)
        self.course.shown += sum(len(row.row.images) or 1 for row in rows)
        return found

    def new_tokens(self, rows: list[Prepared]) -> int:
        """Of a batch's answers, at most."""
        return self._new(max(row.tokens for row in rows))

    def compute(
        self, rows: list[Prepared], new: int, session: TrimSession | None,
        learn: Callable[[], None], *, leave: bool,
    ) -> list[Result]:  # fmt: skip
        """Results of a batch, and the time in `course`: what is asked of a model.

        Args:
            new: as `new_tokens` says.
            session: of the `st3.trim` that is open; None leaves everything to stock transformers.
            learn: to be called once the prompts are computed.
            leave: whether rows that have ended may.
        """
        inputs = [row.inputs for row in rows]
        decoded = decode_rows(self.model, inputs, self.pad, new, session, learn, leave=leave)
        course = self.course
        course.prefill += decoded.prefill
        course.decode += decoded.decode
        course.row_steps += decoded.steps
        course.new_tokens += sum(map(len, decoded.tokens))
        return [self._result(row, n, decoded) for n, row in enumerate(rows)]

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
