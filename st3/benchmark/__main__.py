"""`python -m st3.benchmark --output FOLDER --minutes 9`: measure this machine, or go on with it."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path

import torch

from st3.benchmark.lab import Lab
from st3.benchmark.run import ROWS, run
from st3.benchmark.start import start
from st3.benchmark.suite import cells
from st3.benchmark.tables import markdown
from st3.files import read_rows, write_text
from st3.inference.loading import find_device, find_dtype
from st3.inference.presets import known_config


def main() -> int:
    """Exit code: 0 all is measured, 1 something failed, 2 wrong use, 3 it was stopped."""
    began = time.perf_counter()
    parser = argparse.ArgumentParser(prog="python -m st3.benchmark", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--minutes", type=float, default=9.0, help="stop after so many (default 9)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--dtype", default="auto", help="auto, bfloat16, float16 or float32")
    parser.add_argument(
        "--cells", default="", help="only cells whose names begin so, e.g. table/7b,family"
    )
    parser.add_argument("--commit", help="of the code, where git does not tell")
    parser.add_argument("--command", help="to note, of a script that calls this")
    parser.add_argument("--tiny", action="store_true", help="a dry run: shapes that say nothing")
    asked = parser.parse_args()
    device = find_device(asked.device)
    if device.type != "cuda" and not asked.tiny:
        parser.error("the suite is for a GPU; --tiny runs it anywhere, for a try")
    dtype = find_dtype(asked.dtype, device, known_config("small"))
    lab = Lab(device, dtype, tiny=asked.tiny)
    torch.manual_seed(0)
    begun = start(device, dtype, asked.command or _command(asked), asked.commit)
    suite = cells(tiny=asked.tiny)
    parts = asked.cells.split(",")
    wanted = [*dict.fromkeys(x for part in parts for x in suite if x.name.startswith(part))]
    if not wanted:
        names = ", ".join(cell.name for cell in suite)
        parser.error(f"no cell's name begins with {asked.cells!r}; there are: {names}")
    try:
        ended = run(
            asked.output, wanted, lab,
            seconds=60 * asked.minutes - (time.perf_counter() - began), start=begun,
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )  # fmt: skip
        write_text(asked.output / "tables.md", markdown(read_rows(asked.output / ROWS)))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return {"done": 0, "failed": 1, "stopped": 3}[ended]


def _command(asked: argparse.Namespace) -> str:
    """What was asked for, without the places of this machine."""
    words = ["python", "-m", "st3.benchmark", "--output", "OUT", "--minutes"]
    words.append(f"{asked.minutes:.3g}")
    for name in ("device", "dtype", "cells"):
        if getattr(asked, name) not in ("auto", ""):
            words += [f"--{name}", getattr(asked, name)]
    return shlex.join([*words, *(["--tiny"] if asked.tiny else [])])


if __name__ == "__main__":
    sys.exit(main())
