"""What batches bring `st3 serve`: `python -m st3.serving.http.measure --output FILE.json`.

A server for each batch size is started first; then they take turns, round after round, with the
same questions about pictures that differ, so many callers at a time. Only one of them computes at a
time, but the weights of all are in memory. Answers are held against the first server's.

Options of `st3 serve` for all of them go behind a `--`: `... -- --method none --compile auto`.
"""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Any

import typer

from st3.benchmark.start import noted
from st3.demo.held_out import held_out
from st3.files import write_text
from st3.machine import describe_machine
from st3.serving.http.batching_table import table
from st3.serving.load import Ask, Load, data_url, question, run
from st3.tables import spread

NAME = "served"
_MOST_CALLERS = 64  # whom a server's queue holds
_MEDIANS = ("requests_per_second", "ttft_p50_s", "ttft_p95_s", "total_p50_s", "total_p95_s")


@dataclass
class Server:
    """One that answers, and what it did.

    Attributes:
        batch_size: that it was started with. `url`: where.
        loads: a round each.
    """

    batch_size: int
    url: str
    loads: list[Load] = field(default_factory=list)

    def row(self, first: Server) -> dict[str, Any]:
        """Medians over rounds; `batch`, how many were answered together, is a mean over requests;
        `same` the share of answers that are the first server's, token for token as far as text
        tells.
        """
        found = [load.figures() for load in self.loads]
        answers = [answer for load in self.loads for answer in load.answers]
        theirs = [answer.text for load in first.loads for answer in load.answers]
        rates = [one["requests_per_second"] for one in found]
        batches = [answer.batch for answer in answers if answer.batch is not None]
        return {
            "batch_size": self.batch_size, "rounds": len(found), "spread": spread(rates),
            **{key: median(one[key] for one in found) for key in _MEDIANS},
            "batch": fmean(batches),
            "same": fmean(a.text == b for a, b in zip(answers, theirs, strict=True)),
            "samples": {"requests_per_second": rates},
        }  # fmt: skip


def take_turns(
    servers: Sequence[Server], asks: Sequence[Ask], callers: int, rounds: int
) -> Iterator[list[dict[str, Any]]]:
    """Rows of all servers after each round; the round before the first warms up.

    Raises:
        ValueError: a request was not answered; with what was said of it.
    """
    for number in range(-1, rounds):
        for server in servers:
            load = run(server.url, asks, callers)
            for answer in load.answers:
                if answer.status != 200 or answer.first is None:
                    raise ValueError(
                        f"--batch-size {server.batch_size}: a request was not answered: "
                        f"{answer.error or answer.status}"
                    )
            if number >= 0:
                server.loads.append(load)
        if number >= 0:
            yield [server.row(servers[0]) for server in servers]


@contextmanager
def started(batch_size: int, model: str, more: Sequence[str] = ()) -> Iterator[Server]:
    """`st3 serve` on a free port while the `with` lasts.

    Raises:
        ValueError: it did not start; it has said why on standard error.
    """
    command = [
        sys.executable, "-m", "st3_cli", "serve", "--model", model, "--port", "0", "--json",
        "--served-name", NAME, "--batch-size", str(batch_size), *more,
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8") as process:
        try:
            yield Server(batch_size, _url(process))
        finally:
            process.terminate()


def _url(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    said = ""
    while line := process.stdout.readline():
        said += line
        if line == "}\n":
            return str(json.loads(said)["url"]).removesuffix("/v1")
    raise ValueError("st3 serve did not start: it says above why")


def _sizes(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise typer.BadParameter(f"{text!r}: give whole numbers above 0, such as 1,4,8")
    return [*dict.fromkeys(map(int, parts))]


def main(
    more: Annotated[list[str] | None, typer.Argument(help="Options of st3 serve.")] = None,
    output: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Save it.")] = None,
    batch_sizes: Annotated[str, typer.Option(help="The others are held against the first.")] = (
        "1,4,8"
    ),
    callers: Annotated[int, typer.Option(min=1, max=_MOST_CALLERS, help="At a time.")] = 8,
    requests: Annotated[int, typer.Option(min=1, help="Of a round, a picture each.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Timed ones.")] = 3,
    new: Annotated[int, typer.Option(min=2, help="Most new tokens of an answer.")] = 24,
    model: Annotated[str, typer.Option(help="As st3 serve takes it.")] = "demo",
) -> None:
    """Start servers, ask them in turn, save after each round, and print the table."""
    sizes = _sizes(batch_sizes)
    asks = [
        Ask(question(NAME, one.question.prompt, [data_url(one.picture)], new))
        for one in held_out(requests, 0, ("describe",))
    ]
    document: dict[str, Any] = {
        "serving": [],
        "settings": {
            "model": model, "callers": callers, "requests": requests, "new": new,
            "options": more or [],
            "command": noted(
                ["python", "-m", "st3.serving.http.measure"], sys.argv[1:], {"--output": "OUT.json"}
            ),
            "date": datetime.date.today().isoformat(),
        },
        "machine": describe_machine(None, None),
    }  # fmt: skip
    try:
        with ExitStack() as stack:
            servers = [stack.enter_context(started(size, model, more or ())) for size in sizes]
            for rows in take_turns(servers, asks, callers, rounds):
                document["serving"] = rows
                rates = {row["batch_size"]: row["samples"]["requests_per_second"] for row in rows}
                typer.echo(json.dumps(rates), err=True)
                if output is not None:
                    write_text(output, json.dumps(document, indent=2) + "\n")
    except ValueError as error:
        typer.echo(f"st3: {error}", err=True)
        raise typer.Exit(1) from None
    sys.stdout.write(table(document).markdown())


if __name__ == "__main__":
    typer.run(main)
