"""Measure the demo model on held-out scenes: `python -m st3.demo.evaluate --methods none,st3`.

Each scene is asked one question of every task; an answer counts if it equals the right one to the
letter. Scenes come from the tenth of the scene space that training never draws, no two alike, and
all methods get the same questions. Intervals are Wilson's, at 95 %.
"""

from __future__ import annotations

import datetime
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import st3
from st3.demo.held_out import held_out
from st3.demo.tasks import TASKS
from st3.files import write_text
from st3.machine import describe_machine
from st3.methods import Method, parse_methods
from st3.proportion import interval
from st3.tables import Table

_LONGEST = 64  # tokens; a long caption of four objects has 60


def evaluate(
    model: Any,
    processor: Any,
    methods: Mapping[str, Method],
    *,
    scenes: int,
    seed: int,
    tasks: Sequence[str],
    batch: int = 16,
) -> dict[str, dict[str, tuple[int, int]]]:
    """Method -> task -> (right answers, questions).

    Raises:
        ValueError: a task that does not exist.
    """
    unknown = sorted(set(tasks) - set(TASKS))
    if unknown:
        raise ValueError(f"unknown task {unknown[0]!r}; known: {', '.join(TASKS)}")
    asked = list(held_out(scenes, seed, tasks))
    rows = [{"image": one.picture, "prompt": one.question.prompt} for one in asked]
    found = {}
    for spec, method in methods.items():
        counts = {task: [0, 0] for task in tasks}
        answers = st3.answer_all(
            model, processor, rows, method, max_new_tokens=_LONGEST, batch_size=batch
        )
        for one, result in zip(asked, answers, strict=True):
            assert result.error is None, result.error
            counts[one.question.task][0] += result.answer == one.question.answer
            counts[one.question.task][1] += 1
        found[spec] = {task: (right, of) for task, (right, of) in counts.items() if of}
    return found


def table(document: Mapping[str, Any]) -> Table:
    """Accuracy in percent, a line a task and a column a method; the first one with its interval."""
    rows: list[dict[str, Any]] = document["accuracy"]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    cells = {(row["task"], row["method"]): row for row in rows}
    lines = []
    for task in dict.fromkeys(row["task"] for row in rows):
        first = cells[task, methods[0]]
        line = [f"`{task}`", str(first["asked"])]
        for number, method in enumerate(methods):
            row = cells[task, method]
            text = f"{100 * row['right'] / row['asked']:.1f}"
            if number == 0:
                text += f" ({100 * row['low']:.1f}-{100 * row['high']:.1f})"
            line.append(text)
        lines.append(tuple(line))
    settings = document["settings"]
    title = f"Exact match in percent, {settings['scenes']} held-out scenes, seed {settings['seed']}"
    return Table(title, ("task", "questions", *methods), tuple(lines))


def main(
    methods: Annotated[
        str, typer.Option("--methods", "--method", help="A list; `st3 methods` shows all.")
    ] = "none,st3",
    scenes: Annotated[int, typer.Option(min=1, help="Held-out scenes.")] = 300,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    model: Annotated[
        Path | None, typer.Option(help="A trained folder. [the packaged model]")
    ] = None,
    task: Annotated[list[str] | None, typer.Option(help="Only this task; repeatable.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Questions at a time.")] = 16,
    device: Annotated[str, typer.Option()] = "auto",
    output: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Save it.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Exact-match accuracy of the demo model on held-out scenes, with 95 % intervals."""
    live, processor = st3.load(str(model or "demo"), device=device)
    tasks = tuple(task or TASKS)
    try:
        chosen = parse_methods(methods)
        found = evaluate(
            live, processor, chosen, scenes=scenes, seed=seed, tasks=tasks, batch=batch
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    layers = live.config.get_text_config().num_hidden_layers
    document = {
        "accuracy": [
            {"method": spec, "task": name, "right": right, "asked": asked}
            | dict(zip(("low", "high"), interval(right, asked), strict=True))
            for spec, by_task in found.items()
            for name, (right, asked) in by_task.items()
        ],
        "methods": {spec: method.settings(layers) for spec, method in chosen.items()},
        "settings": {
            "scenes": scenes, "seed": seed, "date": datetime.date.today().isoformat(),
            "command": shlex.join(["python", "-m", "st3.demo.evaluate", *sys.argv[1:]]),
        },
        "machine": describe_machine(live.device, live.dtype),
    }  # fmt: skip
    text = json.dumps(document, indent=2) + "\n"
    if output is not None:
        write_text(output, text)
    sys.stdout.write(text if as_json else table(document).markdown())


if __name__ == "__main__":
    typer.run(main)
