"""Run cells one after the other: rows on the disk as they end, errors a line each, resumable."""

from __future__ import annotations

import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from st3.benchmark.cells import Skipped
from st3.benchmark.lab import Lab
from st3.benchmark.suite import Cell
from st3.engine.recording import DecodeGraphWarning, first_line
from st3.files import append_rows, drop_half_row, make_folder, read_rows
from st3.interrupts import Interrupts, noticed
from st3.verification.report import RED

ROWS = "rows.jsonl"
_AGAIN = 20.0  # seconds, after which the alarm rings again: Python may have lost the exception


def run(
    folder: Path,
    cells: Sequence[Cell],
    lab: Lab,
    *,
    seconds: float,
    start: dict[str, Any],
    say: Callable[[str], None] = lambda line: None,
) -> str:
    """Run the cells that no earlier start has finished.

    Args:
        folder: of the rows; made if need be.
        cells: in their order.
        lab: where to measure.
        seconds: after so many everything stops; what had whole rounds by then is kept.
        start: of this process: machine, versions, date, command. Every row names its start, since
            figures of different ones must not be compared.
        say: told a line for each cell.

    Returns:
        "done", "failed" (all cells were tried, and some failed or are red), "stopped", or "gone"
        (the device does not answer any more).

    Raises:
        ValueError: the folder holds a dry run and this is none, or the other way round; results of
            another machine; or a broken line.
    """
    before = check_folder(folder, start, tiny=lab.tiny)
    make_folder(folder)
    path = folder / ROWS
    drop_half_row(path)
    done = finished(before)
    number = sum("start" in row for row in before)
    append_rows(path, [{"start": number, "tiny": lab.tiny} | start])
    left = [cell for cell in cells if cell.name not in done]
    failed = False
    try:
        with _alarm(seconds) as interrupts:
            for cell in left:
                if interrupts.came:
                    raise KeyboardInterrupt
                began = time.perf_counter()
                rows, note = _measure(cell, lab)
                took = time.perf_counter() - began
                what = {"cell": cell.name, "of_start": number, "cell_seconds": round(took, 2)}
                with interrupts.held():
                    append_rows(path, [what | row for row in rows])
                say(f"{cell.name}: {note}, {took:.1f} s")
                if any(row.get("interrupted") for row in rows):
                    raise KeyboardInterrupt
                if "error" in rows[0] and (why := lab.gone()):
                    say(
                        f"{lab.device} does not answer any more ({why}): see to it, and the same "
                        "command goes on"
                    )
                    return "gone"
                failed |= "error" in rows[0] or any(row.get("verdict") == RED for row in rows)
                lab.sweep()
    except KeyboardInterrupt:
        say("stopped: the same command goes on")
        return "stopped"
    return "failed" if failed else "done"


def _measure(cell: Cell, lab: Lab) -> tuple[list[dict[str, Any]], str]:
    """A cell's rows, or the one line that says why there are none; and a note."""
    try:
        rows = _noted(cell, lab)
    except Skipped as why:
        return [{"skipped": str(why)}], f"skipped: {why}"
    except Exception as error:
        with suppress(Exception):  # of a device that is gone
            lab.forget()
        return [_error(error)], f"failed: {type(error).__name__}: {first_line(error)}"
    red = [f"{row['model']} {row['method']}" for row in rows if row.get("verdict") == RED]
    return rows, f"{len(rows)} rows" + (f", RED: {', '.join(red)}" if red else "")


def _noted(cell: Cell, lab: Lab) -> list[dict[str, Any]]:
    """A cell's rows; where graphs or a compiler could not be had on a GPU, they say so."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DecodeGraphWarning)
        rows = cell.measure(lab)
    notes = sorted({str(w.message) for w in caught if w.category is DecodeGraphWarning})
    return [row | {"notes": notes} for row in rows] if notes and lab.on_cuda else rows


def finished(rows: Sequence[dict[str, Any]]) -> set[str]:
    """Names of cells that need not be run again; failed and interrupted ones are."""
    unfinished = ("error", "interrupted", "skipped", "start")
    return {row["cell"] for row in rows if not any(key in row for key in unfinished)}


def named(machine: Mapping[str, Any]) -> str:
    """The machine that figures are of, as far as they depend on it; nothing if that is unknown."""
    if str(machine.get("device")).startswith("cuda"):
        return str(machine.get("gpu"))
    if "cpu" not in machine:
        return ""
    return f"{machine['cpu']}, {machine.get('cores')} cores, {machine.get('threads')} threads"


def check_folder(folder: Path, start: Mapping[str, Any], *, tiny: bool) -> list[dict[str, Any]]:
    """The rows of a folder that this start may go on with.

    Raises:
        ValueError: see `run`.
    """
    before = read_rows(folder / ROWS)
    if any(row["tiny"] != tiny for row in before if "start" in row):
        raise ValueError(f"{folder} holds {'a real' if tiny else 'a dry'} run: give another")
    here = named(start.get("machine", {}))
    for row in before:
        there = named(row.get("machine", {})) if "start" in row else ""
        if here and there and here != there:
            raise ValueError(
                f"{folder} holds results of another machine ({there}; this is {here}): give "
                "another folder, and compare the two"
            )
    return before


def _error(error: Exception) -> dict[str, Any]:
    where = traceback.extract_tb(error.__traceback__)[-1]
    text = f"{type(error).__name__}: {error}"[:2000]
    return {"error": text, "at": f"{Path(where.filename).name}:{where.lineno}"}


@contextmanager
def _alarm(seconds: float) -> Iterator[Interrupts]:
    """Ctrl-C after so many seconds."""
    with noticed(signal.SIGALRM, signal.SIGINT) as interrupts:
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001), _AGAIN)
        try:
            yield interrupts
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
