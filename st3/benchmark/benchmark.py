"""`benchmark`: measure this machine for so many minutes, or go on with it; the door."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from st3.benchmark import cpu, gpu
from st3.benchmark.album import save_album, save_tables
from st3.benchmark.lab import Lab
from st3.benchmark.run import ROWS, check_folder, named, run
from st3.benchmark.standing import Standing, standing
from st3.benchmark.start import start
from st3.benchmark.suite import chosen
from st3.files import make_folder, plainly, read_rows
from st3.inference.loading import find_device, find_dtype
from st3.inference.presets import known_config

SUITES = {"gpu": gpu.cells, "cpu": cpu.cells}
RESUMES = "; once that is mended, the same command goes on with what is finished"
_ENDING = 0.05, 6.0  # of the time, and seconds at most, for tables, pictures and page


class Refused(ValueError):
    """What was asked for makes no sense; the message, one line, says how to ask."""


@dataclass(frozen=True)
class Outcome:
    """How it ended.

    Attributes:
        ended: "done", "failed", "stopped" or "gone", see `st3.benchmark.run.run`.
        standing: of the whole suite, whatever part of it was asked for.
        rows: all that the folder holds.
        start: machine, date, command and commit of this call.
        files: beside the rows, the page first.
    """

    ended: str
    standing: Standing
    rows: list[dict[str, Any]]
    start: dict[str, Any]
    files: list[str]

    def document(self) -> dict[str, Any]:
        """For JSON: rows of all starts, without the kernels of timelines."""
        return {
            "ended": self.ended,
            "measured": list(self.standing.measured),
            "not_measured": self.standing.lacking,
            "red": list(self.standing.red),
            "files": [ROWS, *self.files],
            "rows": [{k: v for k, v in row.items() if k != "events"} for row in self.rows],
            **self.start,
        }


def benchmark(
    folder: Path,
    *,
    minutes: float,
    device: str = "auto",
    dtype: str = "auto",
    suite: str = "auto",
    cells: str = "",
    tiny: bool = False,
    commit: str | None = None,
    command: str = "",
    began: float | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Run what the folder lacks of a suite, and draw all that it holds then.

    Args:
        folder: of the rows; made if need be.
        minutes: for all of it.
        device, dtype: as names; auto: a GPU where there is one.
        suite: "gpu" or "cpu"; auto: by the device.
        cells: only those whose names begin so, separated by commas.
        tiny: a dry run, of shapes that say nothing.
        commit: of the code, where git does not tell.
        command: to note.
        began: by `time.perf_counter`, from where the minutes count; None: now.
        say: told a line for each cell.

    Raises:
        Refused: no time, no such device or cells, a suite that the device is not for, a folder
            of another machine, dtype or kind of run, or with a broken line.
        ValueError: a folder that cannot be written.
    """
    began = time.perf_counter() if began is None else began
    if not (math.isfinite(minutes) and minutes > 0):
        raise Refused(f"--minutes {minutes:g} is no time: give more than 0, such as 9")
    try:
        where = find_device(device)
        kind = suite if suite != "auto" else "gpu" if where.type == "cuda" else "cpu"
        if kind == "gpu" and where.type != "cuda" and not tiny:
            raise Refused("this suite is for a GPU: --suite cpu is for this device, --tiny a try")
        numbers = find_dtype(dtype, where, known_config("small"))
        every = SUITES[kind](tiny=tiny)
        wanted = chosen(every, cells)
        begun = start(where, numbers, command, commit)
        _check_dtype(folder, check_folder(folder, begun, tiny=tiny), begun["machine"]["dtype"])
    except ValueError as error:
        raise Refused(str(error)) from None
    names = [cell.name for cell in every]
    torch.manual_seed(0)

    def tell(line: str) -> None:
        say(line)
        save_tables(folder, rows := read_rows(folder / ROWS), standing(rows, names))

    lab = Lab(where, numbers, tiny=tiny)
    ending = min(_ENDING[0] * 60 * minutes, _ENDING[1])
    with plainly("write into", folder, RESUMES):
        make_folder(folder)
        ended = run(
            folder, wanted, lab, start=begun, say=tell,
            seconds=60 * minutes - ending - (time.perf_counter() - began),
        )  # fmt: skip
        rows = read_rows(folder / ROWS)
        so_far = standing(rows, names)
        title = f"st3 benchmark: {named(begun['machine'])}"
        files = save_album(folder, rows, so_far, f"{title}, a dry run" if tiny else title)
    if ended == "done" and standing(rows, [cell.name for cell in wanted]).failed:
        ended = "failed"
    return Outcome(ended, so_far, rows, begun, files)


def _check_dtype(folder: Path, rows: Sequence[dict[str, Any]], here: str) -> None:
    """Finished cells are known by their names, which do not tell in what they were computed."""
    for row in rows:
        there = row["machine"].get("dtype") if "start" in row and "machine" in row else here
        if there != here:
            raise Refused(
                f"{folder} holds results in {there}, and this would be {here}: give --dtype "
                f"{there}, or another folder"
            )
