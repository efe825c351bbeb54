"""The thread that owns the model: one request after the other, or some that waited in a batch.

Nothing else calls the model or its processor, so no two calls meet in a cache, and no tokenizer is
asked by two threads. What other threads of the process do with the model is none of its business
(`st3.engine.scope`): each `with st3.trim` belongs to this thread alone.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

from st3.inference.fitting import check_pads
from st3.serving.http.answering import Answerer, Asked, companies
from st3.serving.http.job import Done, Job
from st3.serving.http.limits import Refusal
from st3.serving.http.line import Line


class Worker:
    """Answers jobs until it is closed.

    Args:
        model, processor: from `st3.load`.
        compile: see `st3.trim`.
        batch_size: greedy requests that are answered together at most, where so many wait.
        on_error: told of what nobody's request is to blame for; whatever it raises is set aside.

    Attributes:
        broken: how everything is refused once the device or the thread has failed, else None.
        running: whose turn it is.

    Raises:
        ValueError: a batch, and a tokenizer that cannot pad.
    """

    def __init__(
        self, model: Any, processor: Any, compile: str = "off",
        batch_size: int = 1, on_error: Callable[[BaseException], None] = lambda error: None,
    ) -> None:  # fmt: skip
        check_pads(processor, batch_size)
        self.answerer = Answerer(model, processor, compile)
        self.batch_size, self.on_error = batch_size, on_error
        self.broken: Refusal | None = None
        self.running: Sequence[Job] = ()
        self._stopping = False
        self._line = Line()
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
        if self.state == "failed" or not self._line.put(job):
            job.tell(self._closed())

    def finish(self) -> None:
        """Answer what runs, and nothing more: what waits is refused at once."""
        self._stopping = True
        for job in self._line.close():
            job.tell(self._closed())

    def close(self) -> None:
        """The end, also of what runs."""
        self.finish()
        for job in self.running:
            job.drop()
        self._thread.join()

    def _closed(self) -> Refusal:
        stopping = Refusal(503, "the server is stopping: ask another one", "stopping")
        return self.broken or stopping

    def _run(self) -> None:
        try:
            while jobs := self._line.take(self.batch_size):
                self.running = jobs
                self._answer(jobs)
                self.running = ()
                del jobs  # and their pictures, while there is nothing to do
        except BaseException as error:  # SystemExit, too: a thread ends without a word
            self._break("the model's thread ended", error)
            for job in (*self.running, *self._line.close()):
                job.tell(self._closed())
            self.running = ()
            self._report(error)

    def _answer(self, jobs: Sequence[Job]) -> None:
        ready: list[Asked] = []
        for job in jobs:
            asked = self._guarded(job, self.answerer.prepare, job)
            if asked is not None:
                ready.append(asked)
        for some in companies(ready, self.answerer.room):
            if len(some) > 1:
                self._together(some)
            else:
                self._guarded(some[0].job, self.answerer.alone, some[0])

    def _together(self, some: Sequence[Asked]) -> None:
        """A batch; where it fails, those that have heard nothing yet are asked alone."""
        try:
            self.answerer.together(some)
        except Exception as error:  # a model raises whatever it stumbles over
            why = error.with_traceback(None)  # which holds the batch's tensors
        else:
            return
        for asked in some:
            if asked.job.last is None:
                self._guarded(asked.job, self.answerer.alone, asked)
            elif not isinstance(asked.job.last, Done):
                self._fail(asked.job, why)

    def _guarded(self, job: Job, do: Callable[[Any], Any], what: Any) -> Any:
        """Do something for a job, which is told what goes wrong."""
        if self.broken is not None:
            job.tell(self._closed())
        elif not job.gone:
            try:
                return do(what)
            except Refusal as refusal:
                job.tell(refusal)
            except Exception as error:  # a model raises whatever it stumbles over
                self._fail(job, error)
        return None

    def _fail(self, job: Job, error: Exception) -> None:
        """Nobody's fault, as far as is known; who waits for an answer is told first."""
        line = f"{type(error).__name__}: {error}"
        if isinstance(error, MemoryError) or "out of memory" in line:
            refusal = Refusal(503, "out of memory: send fewer or smaller pictures", "out_of_memory")
        else:
            if "CUDA error" in line:  # nothing works after it
                self._break("the model's device failed", error)
            refusal = Refusal(500, f"the model failed: {line}", "internal_error")
        job.tell(refusal)
        self._report(error)

    def _break(self, what: str, error: BaseException) -> None:
        """From now on everything is refused."""
        self.broken = Refusal(503, f"{what}: {type(error).__name__}: {error}", "device_failed")

    def _report(self, error: BaseException) -> None:
        with contextlib.suppress(BaseException):  # rich exits where nobody reads stderr any more
            self.on_error(error.with_traceback(None))  # which holds the request's tensors
