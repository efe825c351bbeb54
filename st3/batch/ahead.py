"""Rows are made ready in worker processes, some ahead of the model, and come in their order.

Workers are started afresh and not forked: this process has threads of torch, and locks that they
would inherit. They end with it, whatever ends it.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from itertools import islice
from multiprocessing import forkserver
from typing import Any

import torch

from st3.batch.preparing import Prepared, Preparer, one_line
from st3.batch.row import Row

_KILLED = (
    "the process that made it ready was killed: it needs too much memory, or a damaged file "
    "crashes a decoder"
)


def prepared(
    rows: Iterable[Row], preparer: Preparer, workers: int, ahead: int, room: int
) -> Generator[Prepared, None, None]:
    """Rows made ready, in their order; none is lost, also where one kills its worker.

    Args:
        rows: read no further than is needed.
        preparer: makes them ready.
        workers: processes; 0 does it here and now.
        ahead: rows on their way at a time.
        room: bytes of those that are ready and wait, see `_Flow`.

    Raises:
        ValueError: the processor cannot go to other processes.
    """
    if not workers:
        yield from map(preparer, rows)
        return
    try:
        pickle.dumps(preparer)
    except Exception as error:
        raise ValueError(
            f"this model's processor cannot go to other processes ({one_line(error)}): give no "
            "--workers"
        ) from error
    coming = iter(rows)
    suspects: deque[Row] = deque()
    while True:
        yield from _together(coming, preparer, workers, ahead, room, suspects)
        if not suspects:
            return
        while suspects:
            yield from _one_by_one(suspects, preparer)


def _together(
    coming: Iterator[Row], preparer: Preparer, workers: int, ahead: int, room: int,
    suspects: deque[Row],
) -> Iterator[Prepared]:  # fmt: skip
    """As many as there are; if a worker dies, `suspects` are all that were on their way."""
    with _pool(preparer, workers) as pool:
        flow = _Flow(pool, 2 * workers, room)
        try:
            while True:
                flow.add(islice(coming, max(0, ahead - len(flow))))
                if not len(flow):
                    return
                yield flow.take()
        except BrokenProcessPool:
            suspects.extend(flow.rows)
        finally:
            flow.close()


class _Flow:
    """Rows into a pool, in their order, while what comes out of it may wait.

    How large a row becomes is known once it is ready: as large as the last one, it is supposed, and
    few are on their way at a time. Whenever one is ready the next may go, also while nobody takes.

    Args:
        pool: of workers.
        most: rows that are not ready yet, at most.
        room: bytes of rows that are; one may go whatever its size, where there is no other.
    """

    def __init__(self, pool: ProcessPoolExecutor, most: int, room: int) -> None:
        self._pool, self._most, self._room = pool, most, room
        self._here: deque[Row] = deque()
        self._sent: deque[tuple[Row, Future[Prepared]]] = deque()
        self._open = self._bytes = self._last = 0
        self._closed = False
        self._lock = threading.RLock()  # one that is ready at once calls back from `_send`

    def __len__(self) -> int:
        return len(self._here) + len(self._sent)

    @property
    def rows(self) -> list[Row]:
        """All that have not been taken."""
        with self._lock:
            return [*(row for row, _ in self._sent), *self._here]

    def add(self, rows: Iterable[Row]) -> None:
        """More of them."""
        for row in rows:  # which may be anybody's to read, and take its time
            with self._lock:
                self._here.append(row)
                self._send()

    def take(self) -> Prepared:
        """The first of them, once it is ready.

        Raises:
            BrokenProcessPool: a worker has died; the row is still there.
        """
        found = _result(*self._sent[0])
        with self._lock:
            self._sent.popleft()
            self._bytes -= found.bytes
            self._send()
        return found

    def close(self) -> None:
        """Nothing goes any more."""
        with self._lock:
            self._closed = True

    def _send(self) -> None:
        """As many as may go; under the lock."""
        while self._here and not self._closed and self._open < self._most:
            expected = self._bytes + self._open * self._last
            if expected >= self._room and (self._open or self._bytes):
                return
            future = self._pool.submit(_prepare, self._here[0])
            self._sent.append((self._here.popleft(), future))
            self._open += 1
            future.add_done_callback(self._done)

    def _done(self, future: Future[Prepared]) -> None:
        """In a thread of the pool's."""
        if future.cancelled() or isinstance(future.exception(), BrokenProcessPool):
            return  # the pool may hold its own lock now, and whoever takes finds out
        with self._lock, suppress(BrokenProcessPool):
            self._open -= 1
            if future.exception() is None:
                size = future.result().bytes
                self._bytes += size
                self._last = size or self._last
            self._send()


def _one_by_one(suspects: deque[Row], preparer: Preparer) -> Iterator[Prepared]:
    """Until one kills the only worker: then that was it."""
    with _pool(preparer, 1) as pool:
        while suspects:
            row = suspects.popleft()
            try:
                yield _result(row, pool.submit(_prepare, row))
            except BrokenProcessPool:
                yield Prepared(row, problem=_KILLED)
                return


def _result(row: Row, future: Future[Prepared]) -> Prepared:
    """Whatever is wrong on the way is the row's problem, but for a worker that dies."""
    try:
        return future.result()
    except BrokenProcessPool:
        raise
    except Exception as error:
        return Prepared(row, problem=one_line(error))


def warm_up(workers: int) -> None:
    """Let the process that workers come from import what they need, while a model is loaded."""
    context = _context()
    if workers and context.get_start_method() == "forkserver":
        forkserver.ensure_running()


def _context() -> Any:
    """How workers are started; where it can be, torch is imported once for all."""
    how = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(how)
    if how == "forkserver":
        context.set_forkserver_preload(["st3.batch.quiet", __name__])
    return context


@contextmanager
def _pool(preparer: Preparer, workers: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes; what they have not begun is dropped at the end."""
    pool = ProcessPoolExecutor(
        workers, mp_context=_context(), initializer=_begin, initargs=(preparer,)
    )
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_preparers: list[Preparer] = []


def _begin(preparer: Preparer) -> None:
    """In a worker, once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all of us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _preparers[:] = [preparer]


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(0)


def _prepare(row: Row) -> Prepared:
    return _preparers[0](row)


def sensible_workers(cores: int) -> int:
    """How many there are by default (ours): a core is left to the model, and more than 8 wait."""
    return 0 if sys.platform == "win32" else max(0, min(8, cores - 1))
