"""Where results lie until all are there: lines of JSON, found by the numbers of their rows."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from st3.batch.parquet import count_errors, stored_results
from st3.files import append_rows, replacing

_CHUNK = 10_000  # rows held at a time


def written(path: Path) -> tuple[Path, ...]:
    """Where results of an output lie, in the end and until then."""
    return tuple({path, journal_of(path)})


def complete(path: Path) -> bool:
    """Whether a table was written, whose rows are all there."""
    return path.exists() and not journal_of(path).exists()


def journal_of(path: Path) -> Path:
    """Where results of an output are appended."""
    if path.suffix.lower() == ".parquet":
        return path.with_name(f"{path.name}.jsonl")
    return path


def forget_errors(path: Path) -> None:
    """Leave rows with answers alone; of a table that is whole, too, which then is no longer."""
    journal = journal_of(path)
    rows: Iterator[dict[str, Any]]
    if complete(path) and journal != path:
        if not count_errors(path):
            return
        rows = stored_results(path)
    else:
        places, errors = places_of(journal)
        if not errors:
            return
        rows = (json.loads(line) for line in lines_of(journal, places))
    good = (row for row in rows if "error" not in row)
    with replacing(journal) as temporary:
        while chunk := list(islice(good, _CHUNK)):
            append_rows(temporary, chunk)


def places_of(journal: Path) -> tuple[dict[int, tuple[int, int]], int]:
    """Row -> where its line begins, and how long it is; and how many are errors.

    Raises:
        ValueError: a line that is no result, with its number.
    """
    found: dict[int, tuple[int, int]] = {}
    begin = errors = 0
    if not journal.exists():
        return found, 0
    with journal.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                read = json.loads(line)
                row = operator.index(read["row"])
            except (ValueError, KeyError, TypeError):
                raise ValueError(
                    f'{journal}, line {number}, is no result with a "row": take that line out, and '
                    "its row is asked again"
                ) from None
            if row not in found:
                found[row] = begin, len(line)
                errors += "error" in read
            begin += len(line)
    return found, errors


def lines_of(journal: Path, places: dict[int, tuple[int, int]]) -> Iterator[bytes]:
    """In the order of rows."""
    with journal.open("rb") as file:
        for row in sorted(places):
            begin, length = places[row]
            file.seek(begin)
            yield file.read(length)
