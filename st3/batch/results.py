"""The file of results: appended to as rows finish, gone on with after any end, in order at last.

JSON lines are appended to the output itself; those of a Parquet table to a file beside it, until
all are there. Beside the output lies what was asked, `OUTPUT.settings.json`: whoever goes on must
ask the same. Its lock tells that somebody is writing; the system frees that when a process dies.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from st3.batch.journal import forget_errors, journal_of, lines_of, places_of, written
from st3.batch.parquet import check_parquet, write_parquet
from st3.batch.settings import differences
from st3.files import append_rows, drop_half_row, plainly, replacing, valid

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

KINDS = (".jsonl", ".parquet")
RESUMES = "; once that is mended, the same command goes on with what is finished"


class ResultsError(ValueError):
    """The output is not this run's, or another run is writing it."""


class Results:
    """Results of a run, open for writing.

    Args:
        path: of the output, JSONL or Parquet by its ending.
        lock: a handle of the settings, held until `close`.

    Attributes:
        done: numbers of the rows that are finished.
        errors: how many of them have an error.
    """

    def __init__(self, path: Path, lock: int) -> None:
        self.path, self._lock = path, lock
        self.journal = journal_of(path)
        self.done: set[int] = set()
        self.errors = 0

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Add results, each with its `row`; on the disk before this returns.

        Raises:
            ValueError: the disk is full, or does not let us; what is there stays whole.
        """
        with plainly("write", self.journal, RESUMES):
            append_rows(self.journal, rows)
        self.done.update(row["row"] for row in rows)
        self.errors += sum("error" in row for row in rows)

    def finish(self, total: int, *, wait: bool = False) -> bool:
        """Put all in order, once all are there and nobody else is writing; whether that is so now.

        Args:
            total: rows of the run.
            wait: for the other processes of the run; else it is left to whoever comes last.

        Raises:
            ValueError: the disk is full, or does not let us; nothing is lost.
        """
        fcntl.flock(self._lock, fcntl.LOCK_UN)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        if not self.journal.exists():  # a table that is whole
            return self.path.exists()
        with plainly("write", self.path, RESUMES):
            places = self._look()
            if len(places) < total:
                return False
            if self.journal != self.path:
                ids = (row["id"] for row in self._in_order(places))
                whole = all(isinstance(x, int) and -(2**63) <= x < 2**63 for x in ids)
                write_parquet(self.path, self._in_order(places), whole)
                self.journal.unlink()
            elif list(places) != sorted(places):
                with replacing(self.path) as temporary, temporary.open("wb") as out:
                    for line in lines_of(self.journal, places):
                        out.write(line)
                    out.flush()
                    os.fsync(out.fileno())
        return True

    def wait(self) -> None:
        """Until all processes of the run have finished, however long that takes."""
        fcntl.flock(self._lock, fcntl.LOCK_UN)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def _look(self) -> dict[int, tuple[int, int]]:
        """What is there, whoever wrote it."""
        places, self.errors = places_of(self.journal)
        self.done = set(places)
        return places

    def _in_order(self, places: dict[int, tuple[int, int]]) -> Iterator[dict[str, Any]]:
        for line in lines_of(self.journal, places):
            yield json.loads(line)

    def close(self) -> None:
        """Let others write."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


@contextmanager
def open_results(
    path: Path,
    settings: dict[str, Any],
    *,
    first: bool = True,
    again: bool = False,
    retry: bool = False,
) -> Iterator[Results]:
    """Begin results, or go on with some; a line that a kill cut short is dropped.

    Args:
        path: of the output.
        settings: all that decides the results.
        first: of the processes of a run the first, which looks whether the output is free; the
            others come after it.
        again: throw away what is there.
        retry: forget rows with errors, so that they are asked again.

    Raises:
        ResultsError: results with other settings, another file, or another run writes here.
        ValueError: it cannot be read or written, or PyArrow is not installed.
    """
    if fcntl is None:
        raise ValueError("results are locked as POSIX systems do: run this on Linux or macOS")
    if path.suffix.lower() == ".parquet":
        check_parquet()
    beside = path.with_name(f"{path.name}.settings.json")
    with plainly("write", beside):
        lock = os.open(beside, os.O_RDWR | os.O_CREAT, 0o644)
    results = Results(path, lock)
    try:
        if first:
            _take(lock, fcntl.LOCK_EX, path)
            with plainly("write", path, RESUMES):
                try:
                    _check_settings(lock, path, settings, again)
                except ResultsError:
                    if not os.fstat(lock).st_size:  # ours, and no one's
                        beside.unlink(missing_ok=True)
                    raise
                drop_half_row(results.journal)
                if retry:
                    forget_errors(path)
        _take(lock, fcntl.LOCK_SH, path)
        with plainly("read", results.journal):
            results._look()
        yield results
    finally:
        results.close()


def _take(lock: int, how: int, path: Path) -> None:
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ResultsError(
            f"another run is writing {path}: wait for it, or give another --output"
        ) from None


def _check_settings(lock: int, path: Path, settings: dict[str, Any], again: bool) -> None:
    """See that what is there is of the same settings, or nothing; then there are settings."""
    if again:
        for old in written(path):
            with suppress(FileNotFoundError):
                old.unlink()
        os.ftruncate(lock, 0)
    text = os.pread(lock, os.fstat(lock).st_size, 0)
    now = json.loads(json.dumps(settings))
    begun = any(old.exists() and old.stat().st_size for old in written(path))
    if not begun:  # nothing was finished with whatever settings
        os.ftruncate(lock, 0)
        os.pwrite(lock, valid(json.dumps(now, indent=2, ensure_ascii=False) + "\n").encode(), 0)
        os.fsync(lock)
        return
    try:
        before = json.loads(text)
        assert isinstance(before, dict)
    except (ValueError, AssertionError):
        raise ResultsError(
            f"{path} is there and no results of st3 batch that could be gone on with: give another "
            "--output, or --force to overwrite it"
        ) from None
    if other := differences(before, now):
        raise ResultsError(
            f"{path} holds results with other settings ({'; '.join(other)}): give another "
            "--output, or --force to overwrite it"
        )
