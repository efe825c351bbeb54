"""`st3 benchmark`: measure this machine for some minutes, go on with it, compare two of them."""

from __future__ import annotations

import enum
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from st3.files import plainly
from st3_cli import options as o
from st3_cli.console import (
    aside,
    err,
    print_json,
    print_table,
    print_texts,
    quiet_transformers,
    say,
)
from st3_cli.ctrl_c import ctrl_c
from st3_cli.errors import UsageError
from st3_cli.outputs import check_folder

if TYPE_CHECKING:
    from st3.benchmark.benchmark import Outcome

EXAMPLES = o.examples(
    "st3 benchmark --minutes 9 --output here",
    "st3 benchmark --minutes 2 --output here --cells table/small",
    "st3 benchmark --compare here there",
)
SUITE = "Suite"
TIME_WAS_UP = 3


class SuiteName(enum.StrEnum):
    """Which shapes."""

    auto = "auto"
    gpu = "gpu"
    cpu = "cpu"


def _time(minutes: float) -> float:
    if not (math.isfinite(minutes) and minutes > 0):
        raise typer.BadParameter(f"{minutes:g} is no time: give more than 0, such as 9")
    return minutes


def benchmark(
    minutes: Annotated[
        float,
        o.option(
            SUITE, "--minutes", metavar="N", callback=_time,
            help="Stop after so many; the same command goes on.",
        ),
    ] = 9.0,
    suite: Annotated[
        SuiteName,
        o.option(
            SUITE, "--suite", metavar="NAME",
            help=f"Which shapes: {o.one_of(SuiteName)}; auto goes by the device.",
        ),
    ] = SuiteName.auto,
    cells: Annotated[
        str,
        o.option(
            SUITE, "--cells", metavar="LIST", show_default="all",
            help="Only cells whose names begin so, in this order: table/7b,long.",
        ),
    ] = "",
    tiny: Annotated[
        bool, o.flag(SUITE, "--tiny", help="A dry run, of shapes that say nothing.")
    ] = False,
    compare: Annotated[
        tuple[Path, Path] | None,
        o.option(
            SUITE, "--compare", metavar="A B",
            help="Measure nothing: put two folders of results side by side.",
        ),
    ] = None,
    device: o.DeviceOption = o.Device.auto,
    dtype: Annotated[
        o.Dtype,
        o.option(
            o.COMPUTE, "--dtype", metavar="NAME",
            help=f"{o.one_of(o.Dtype)}; auto: bfloat16 on a GPU, else float32.",
        ),
    ] = o.Dtype.auto,
    output: Annotated[
        Path | None,
        o.option(
            o.OUTPUT, metavar="FOLDER", show_default="st3-benchmark",
            help="A new one, or that of a run to go on with; of --compare, for its files.",
        ),
    ] = None,
    commit: Annotated[
        str | None,
        o.option(o.OUTPUT, metavar="ID", help="Of the code, where git does not tell."),
    ] = None,
    from_script: Annotated[
        str | None,
        o.option(o.OUTPUT, "--command", metavar="TEXT", help="To note, of a script around this."),
    ] = None,
    json: o.JsonOption = False,
    debug: o.DebugOption = False,
) -> None:  # fmt: skip
    """Measure this machine: is it right, what it could do, what trimming saves of it.

    Each row is written as it ends; tables, pictures and report.html are drawn in the end.
    Exit code 0: all is measured. 1: something is wrong or failed. 3: time was up, go on.
    """
    began = time.perf_counter()
    if compare is not None:
        if tiny or cells:
            raise UsageError("--compare measures nothing: leave --tiny and --cells out")
        _compare(*compare, output, json)
        return
    folder = output or Path("st3-benchmark")
    check_folder("--output", folder)

    from st3.benchmark.benchmark import Refused
    from st3.benchmark.benchmark import benchmark as measure
    from st3.benchmark.start import noted

    quiet_transformers()
    command = from_script or noted(["st3"], sys.argv[1:], {"--output": "OUT"})
    try:
        outcome = measure(
            folder, minutes=minutes, device=device.value, dtype=dtype.value, suite=suite.value,
            cells=cells, tiny=tiny, commit=commit, command=command, began=began, say=aside,
        )  # fmt: skip
    except Refused as error:
        raise UsageError(str(error)) from None
    if json:
        print_json(outcome.document())
    else:
        _print(folder, outcome)
    if outcome.standing.red:
        say(f"wrong on this device: {', '.join(outcome.standing.red)}")
    if outcome.ended == "stopped" and not ctrl_c.came:
        raise typer.Exit(TIME_WAS_UP)
    if outcome.ended != "done":
        raise typer.Exit(1)


def _print(folder: Path, outcome: Outcome) -> None:
    from st3.benchmark.tables import tables

    for table in tables(outcome.rows):
        if table.title.startswith(("Correct", "At best", "End to end", "Against")):
            print_table(table.title, table.heads, table.rows)
    for table in outcome.standing.tables():
        print_texts((table.title, table.heads, table.rows))
    aside(f"all tables and pictures: {folder / outcome.files[0]}")


def _compare(first: Path, second: Path, output: Path | None, json: bool) -> None:
    if output is not None:
        check_folder("--output", output)

    from st3.benchmark.compare import compare

    try:
        found = compare(first, second)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if json:
        print_json(found.document())
    else:
        for table in found.tables():
            print_table(table.title, table.heads, table.rows)
        for line in found.sentences():
            err.print(line, style="dim")
    if output is not None:
        with plainly("write into", output):
            files = found.save(output)
        if not json:
            aside(f"wrote {output / files[0]}")
