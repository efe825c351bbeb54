"""The thread that owns the model: requests one after the other, each under a trim of its own.

Nothing else calls the model or its processor, so no two requests meet in a cache, and no tokenizer
is asked by two threads. What other threads of the process do with the model is none of its business
(`st3.engine.scope`): each `with st3.trim` belongs to this thread alone.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from st3.inference.generation import Answer, answer_inputs
from st3.inference.transcript import prepare_transcript
from st3.methods import Method
from st3.serving.http.job import Done, Job, Piece
from st3.serving.http.limits import Refusal, invalid
from st3.serving.http.questions import Question
from st3.serving.http.text import Outlet


class Worker:
    """Answers jobs until it is closed.

    Args:
        model, processor: from `st3.load`.
        method: how to trim.
        compile: see `st3.trim`.
        on_error: told of what nobody's request is to blame for.

    Attributes:
        broken: what made an end of the device, None while it works.
    """

    def __init__(
        self, model: Any, processor: Any, method: Method, compile: str = "off",
        on_error: Callable[[Exception], None] = lambda error: None,
    ) -> None:  # fmt: skip
        self.model, self.processor, self.method, self.compile = model, processor, method, compile
        self.on_error = on_error
        self.broken: str | None = None
        self.running: Job | None = None
        self._stopping = False
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="st3-model", daemon=True)
        self._thread.start()

    @property
    def state(self) -> str:
        """`ok`, `stopping` or `failed`."""
        if self.broken is not None or not self._thread.is_alive():
            return "failed" if not self._stopping else "stopping"
        return "stopping" if self._stopping else "ok"

    def submit(self, job: Job) -> None:
        """Queue it up, or refuse it where there will be no turn for it."""
        if self._stopping or self.broken is not None:
            job.tell(self._closed())
            return
        self._jobs.put(job)

    def finish(self) -> None:
        """Answer what runs, and nothing more: what waits is refused at once."""
        self._stopping = True
        waiting = []
        while True:
            try:
                waiting.append(self._jobs.get_nowait())
            except queue.Empty:
                break
        for job in waiting:
            if job is not None:
                job.tell(self._closed())
        self._jobs.put(None)

    def close(self) -> None:
        """The end, also of what runs."""
        self.finish()
        running = self.running
        if running is not None:
            running.drop()
        self._thread.join()

    def _closed(self) -> Refusal:
        if self.broken is not None:
            return Refusal(503, f"the model's device failed: {self.broken}", "device_failed")
        return Refusal(503, "the server is stopping: ask another one", "stopping")

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            if job.gone:
                continue
            if self._stopping or self.broken is not None:
                job.tell(self._closed())
                continue
            self.running = job
            try:
                self._answer(job)
            except Refusal as refusal:
                job.tell(refusal)
            except Exception as error:  # a model raises whatever it stumbles over
                job.tell(self._failed(error))
            self.running = None
            del job  # and its pictures, while there is nothing to do

    def _failed(self, error: Exception) -> Refusal:
        """Nobody's fault, as far as is known."""
        line = f"{type(error).__name__}: {error}"
        if isinstance(error, MemoryError) or "out of memory" in line:
            refusal = Refusal(503, "out of memory: send fewer or smaller pictures", "out_of_memory")
        else:
            if "CUDA error" in line:  # nothing works after it
                self.broken = " ".join(line.split())
            refusal = Refusal(500, f"the model failed: {line}", "internal_error")
        self.on_error(error.with_traceback(None))  # which holds the request's tensors
        return refusal

    def _answer(self, job: Job) -> None:
        question = job.question
        if question is None:
            return
        try:
            inputs = prepare_transcript(
                self.model, self.processor, question.turns, question.decoded()
            )
        except ValueError as error:
            raise invalid(str(error)) from None
        stops, asks = question.stops, _asks(question)
        job.question = question = None  # its pictures are in the inputs
        if job.gone:
            return
        outlet = Outlet(lambda text: job.tell(Piece(text)) if job.streams else None, stops)
        began = time.perf_counter()
        answer = answer_inputs(
            self.model, self.processor, inputs, self.method, **asks, compile=self.compile,
            on_text=outlet.put, stop=lambda: job.gone or outlet.stopped,
        )  # fmt: skip
        outlet.end()
        text = outlet.text if outlet.stopped or job.streams else answer.text
        job.tell(_done(answer, outlet, text, began - job.arrived))


def _asks(question: Question) -> dict[str, Any]:
    return {
        "max_new_tokens": question.tokens,
        "temperature": question.temperature,
        "top_p": question.top_p,
        "seed": question.seed,
    }


def _done(answer: Answer, outlet: Outlet, text: str, waited: float) -> Done:
    session, timing = answer.session, answer.timing
    assert session is not None
    return Done(
        text=text,
        finish="stop" if answer.ended or outlet.stopped else "length",
        prompt_tokens=answer.prompt_tokens,
        new_tokens=answer.new_tokens,
        method=session.method.name,
        visual=session.visual_tokens[0],
        kept=tuple(session.kept_per_layer()),
        kv_bytes=session.kv_bytes[0],
        untrimmed_kv_bytes=session.untrimmed_kv_bytes[0],
        ttft=waited + timing.ttft_ms / 1000,
        timing=dataclasses.asdict(timing),
    )
