"""A run: the rows of a source are answered into a file; after any end the same run goes on."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from st3.batch.journal import complete
from st3.batch.parquet import count_errors
from st3.batch.ranks import Ranks
from st3.batch.results import open_results
from st3.batch.row import Result, Row
from st3.batch.sources import Source
from st3.interrupts import noticed

Answering = Callable[[Sequence[Row]], Generator[list[Result], None, None]]
"""From rows to results, some at a time, in any order."""


@dataclass(frozen=True)
class Run:
    """What a run has come to.

    Attributes:
        rows: of its source.
        before: that were finished when it began. `done`: that are now. `errors`: of these.
        whole: whether all are there, in order.
        interrupted: by Ctrl-C.
    """

    rows: int
    before: int
    done: int
    errors: int
    whole: bool
    interrupted: bool


def answer_file(
    source: Source,
    output: Path,
    settings: dict[str, Any],
    answering: Answering,
    ranks: Ranks,
    *,
    again: bool = False,
    retry: bool = False,
    on_begin: Callable[[int, int], None] = lambda before, mine: None,
    on_results: Callable[[Sequence[Result]], None] = lambda results: None,
) -> Run:
    """Answer what has not been answered yet; each process its share of the rows.

    Args:
        source: of the rows.
        output: JSONL or Parquet.
        settings: see `settings_of`; others in the file are refused.
        answering: answers rows; called only if some are left.
        ranks: which process this is.
        again: throw away what is there.
        retry: ask rows with errors again.
        on_begin: told how many rows were finished before, and how many this process will answer.
        on_results: told what was just written.

    Raises:
        ResultsError, ValueError: see `open_results` and `Results.append`.
    """
    if ranks.rank:
        ranks.wait()  # until the first has looked
    with open_results(output, settings, first=ranks.rank == 0, again=again, retry=retry) as results:
        if not ranks.rank:
            ranks.wait()
        total = len(source.rows)
        if complete(output) and results.journal != output:
            on_begin(total, 0)
            return Run(total, total, total, count_errors(output), whole=True, interrupted=False)
        before = len(results.done)
        left = [row for row in source.rows if row.number not in results.done]
        ranks.wait()  # until all have read what is done, and nobody writes before
        mine = left[ranks.rank :: ranks.world]
        on_begin(before, len(mine))
        interrupted = False
        try:
            with noticed(signal.SIGINT) as interrupts, closing(_some(answering, mine)) as coming:
                for found in coming:
                    with interrupts.held():
                        results.append([result.document() for result in found])
                    on_results(found)
        except KeyboardInterrupt:
            if ranks.world > 1:
                raise
            interrupted = True
        if ranks.rank:
            results.wait()  # what follows may be gathered, and that is not waited for as long
            return Run(total, before, len(results.done), results.errors, False, interrupted)
        whole = not interrupted and results.finish(total, wait=True)
        return Run(total, before, len(results.done), results.errors, whole, interrupted)


def _some(answering: Answering, rows: Sequence[Row]) -> Generator[list[Result], None, None]:
    if rows:
        yield from answering(rows)
