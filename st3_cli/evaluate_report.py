"""What `st3 evaluate` prints: a bar while it asks, its tables in the end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from st3_cli.console import err, print_json, print_table
from st3_cli.progress import batch_bar

if TYPE_CHECKING:
    from st3.batch.asking import Course
    from st3.batch.row import Result


def evaluation_bar(name: str) -> Any:
    """Documents of one cell, and the time left; see `st3.evaluation.evaluate.Bar`."""
    return _EvaluationBar(name)


class _EvaluationBar:
    def __init__(self, name: str) -> None:
        self.bar = batch_bar(name)

    def __enter__(self) -> Any:
        self.bar.__enter__()
        self.began = time.perf_counter()
        return self

    def begin(self, before: int, mine: int) -> None:
        """So many were there, so many are asked now."""
        self.bar.begin(mine)

    def note(self, results: Sequence[Result], course: Course) -> None:
        """These were written."""
        rate = course.shown / (time.perf_counter() - self.began) if course.shown else None
        self.bar(len(results), rate, course.shares())

    def __exit__(self, *error: Any) -> None:
        self.bar.__exit__(*error)


def print_report(document: dict[str, Any], json: bool) -> None:
    """Tables on standard output, or one document; what they mean on standard error."""
    from st3.evaluation.results import tables

    rows = document["rows"]
    if json:
        print_json(document)
    else:
        for table in tables(rows):
            print_table(table.title, table.heads, table.rows)
        err.print(_WORDS, style="dim")
    for line in notes(rows):
        err.print(f"note: {line}", style="yellow", soft_wrap=True)
    if document["interrupted"]:
        done = sum(row["answered"] for row in rows)
        asked = sum(row["asked"] for row in rows)
        err.print(
            f"interrupted: {done} of {asked} answers are there; the same command goes on",
            soft_wrap=True,
        )


def notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What a reader must not miss."""
    found = []
    for row in rows:
        where = f"{row['task']}, {row['method']}"
        if row["scoring_error"]:
            found.append(f"{where}: {row['scoring_error']}")
        if row["errors"]:
            found.append(
                f"{where}: {row['errors']} of {row['answered']} could not be asked and count as "
                f'empty answers; see "error" in answers/{row["cell"]}.jsonl, and --retry-errors'
            )
        known = row["published"]
        if known is not None and row["score"] is not None and row["low"] is not None:
            apart = not row["low"] <= known <= row["high"]
            found.append(
                f"{where}: {row['score']:.1f} here, {known:.1f} in {row['published_source']}"
                + (": outside the interval, so look at prompt and pictures first" if apart else "")
            )
    return found


_WORDS = (
    "Scores with 95 % intervals (Wilson's of shares, else bootstrapped); difference: to none over "
    "the same documents, with its interval (Newcombe's, else bootstrapped) and p (McNemar's exact "
    "test, else the bootstrap). MACs and KV cache are counted on a prompt of median length; "
    "tokens/s is of this run's batches, prefill included."
)
