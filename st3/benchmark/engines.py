"""One file of rows by one process, by ranks and by Ray: `python -m st3.benchmark.engines`.

Each engine is the command `st3 batch` as a user would start it, on the demo, with the threads of
the machine shared out. Seconds are those of the whole command, the start of Python, of a Ray
cluster and loading included; pictures a second are the command's own figure, with Ray's actors'
loading in it (docs/batch.md).
"""

from __future__ import annotations

import datetime
import itertools
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from st3.demo.held_out import held_out
from st3.files import write_text
from st3.machine import describe_machine
from st3.tables import Table


def engines(processes: int) -> dict[str, tuple[int, list[str], list[str]]]:
    """Of each engine: processes, what starts Python with, and options of `st3 batch`."""
    ranks = [
        "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
    ]  # fmt: skip
    return {
        "one process": (1, [], []),
        f"torchrun, {processes} ranks": (processes, ranks, []),
        f"Ray, {processes} actors": (
            processes, [], ["--engine", "ray", "--ray-actors", str(processes)],
        ),
    }  # fmt: skip


def make_rows(folder: Path, count: int) -> Path:
    """So many pictures of the demo's world and their questions, as JSONL."""
    path = folder / "rows.jsonl"
    with path.open("w", encoding="utf-8") as out:
        for number, one in enumerate(itertools.islice(held_out(count, 0), count)):
            one.picture.save(folder / f"{number}.png")
            row = {"id": number, "image": f"{number}.png", "prompt": one.question.prompt}
            out.write(json.dumps(row) + "\n")
    return path


def ask(rows: Path, starter: list[str], options: list[str], threads: int) -> dict[str, Any]:
    """One run of the command: its seconds, pictures a second and the file that it made.

    Raises:
        RuntimeError: it failed.
    """
    output = rows.parent / "answers.jsonl"
    for old in rows.parent.glob("answers.jsonl*"):
        old.unlink()
    command = [
        sys.executable, *starter, "-m", "st3_cli", "batch", str(rows), "--output", str(output),
        "--json", "--max-new-tokens", "24", *options,
    ]  # fmt: skip
    began = time.perf_counter()
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)} failed: {done.stderr[-2000:]}")
    report = json.loads(done.stdout)
    return {
        "seconds": seconds,
        "pictures_per_second": report["pictures_per_second"],
        "answers": output.read_text(encoding="utf-8"),
    }


def table(document: Mapping[str, Any]) -> Table:
    """A line an engine."""
    lines = [
        (
            row["engine"],
            str(row["threads"]),
            f"{row['pictures_per_second']:.3g}",
            f"{row['seconds']:.3g}",
            f"{row['spread']:.0%}",
            "yes" if row["same_file"] else "no",
        )
        for row in document["engines"]
    ]
    title = f"Engines of st3 batch: demo, {document['settings']['rows']} rows"
    heads = (
        "engine", "threads each", "pictures/s", "whole command, s", "spread", "same file",
    )  # fmt: skip
    return Table(title, heads, tuple(lines))


def main(
    output: Annotated[Path, typer.Option(help="Where to save the rows, .json.")],
    rows: Annotated[int, typer.Option(min=2, help="Pictures.")] = 300,
    processes: Annotated[int, typer.Option(min=2, help="Ranks, or actors.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds.")] = 3,
) -> None:
    """Measure the engines in turn, and print the table."""
    made: dict[str, list[dict[str, Any]]] = {name: [] for name in engines(processes)}
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        path = make_rows(Path(folder), rows)
        for _ in range(rounds):
            for name, (count, starter, options) in engines(processes).items():
                made[name].append(ask(path, starter, options, max(1, threads // count)))
                typer.echo(f"{name}: {made[name][-1]['seconds']:.1f} s", err=True)
    first = made["one process"][0]["answers"]
    found = []
    for name, (count, _, _) in engines(processes).items():
        seconds = [run["seconds"] for run in made[name]]
        middle = statistics.median(seconds)
        found.append(
            {
                "engine": name,
                "threads": max(1, threads // count),
                "seconds": middle,
                "spread": (max(seconds) - min(seconds)) / middle,
                "pictures_per_second": statistics.median(
                    run["pictures_per_second"] for run in made[name]
                ),
                "same_file": all(run["answers"] == first for run in made[name]),
            }
        )
    document = {
        "engines": found,
        "settings": {
            "rows": rows,
            "rounds": rounds,
            "command": shlex.join(["python", "-m", "st3.benchmark.engines", *sys.argv[1:]]),
            "date": datetime.date.today().isoformat(),
        },
        "machine": describe_machine(torch.device("cpu")),
    }
    write_text(output, json.dumps(document, indent=2) + "\n")
    sys.stdout.write(table(document).markdown())


if __name__ == "__main__":
    typer.run(main)
