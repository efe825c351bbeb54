"""Measure the demo model on held-out scenes: `python -m st3.demo.evaluate --method st3 --json`.

Each scene is asked one question of every task; an answer counts if it equals the right one to the
letter. Scenes come from the tenth of the scene space that training never draws, no two alike.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

import st3
from st3.demo.scenes import render, sample_distinct
from st3.demo.tasks import ALL_TASKS, TASKS, Question, ask
from st3.generation import prepare_batch
from st3.methods import Method, make_method

_LONGEST = 64  # tokens; a long caption of four objects has 56


def accuracies(
    model: Any,
    processor: Any,
    method: Method,
    *,
    scenes: int,
    seed: int,
    tasks: tuple[str, ...],
    batch: int,
) -> dict[str, float]:
    """Exact-match accuracy of each task, in 0..1."""
    right: dict[str, int] = dict.fromkeys(tasks, 0)
    asked: dict[str, int] = dict.fromkeys(tasks, 0)
    with st3.trim(model, method, max_new_tokens=_LONGEST):
        for questions, pictures in _batches(scenes, seed, tasks, batch):
            answers = _answer(model, processor, pictures, [q.prompt for q in questions])
            for question, given in zip(questions, answers, strict=True):
                asked[question.task] += 1
                right[question.task] += given == question.answer
    return {task: right[task] / asked[task] for task in tasks if asked[task]}


def _batches(
    scenes: int, seed: int, tasks: tuple[str, ...], batch: int
) -> Iterator[tuple[list[Question], list[Any]]]:
    rng = np.random.default_rng(seed)
    items = []
    for scene in sample_distinct(rng, scenes):
        picture = render(scene, rng).picture
        items += [(q, picture) for task in tasks if (q := ask(task, scene, rng)) is not None]
    items.sort(key=lambda item: (item[0].task, len(item[0].prompt)))  # little padding
    for start in range(0, len(items), batch):
        questions, pictures = zip(*items[start : start + batch], strict=True)
        yield list(questions), list(pictures)


@torch.inference_mode()
def _answer(model: Any, processor: Any, pictures: list[Any], prompts: list[str]) -> list[str]:
    inputs = prepare_batch(model, processor, pictures, prompts)
    output = model.generate(**inputs, max_new_tokens=_LONGEST, do_sample=False)
    new = output[:, inputs["input_ids"].shape[1] :]
    decoded = processor.tokenizer.batch_decode(new, skip_special_tokens=True)
    return [text.strip() for text in decoded]


def main(
    method: Annotated[str, typer.Option(help="A method, as `st3 methods` lists them.")] = "none",
    scenes: Annotated[int, typer.Option(min=1, help="Held-out scenes.")] = 300,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    model: Annotated[
        Path | None, typer.Option(help="A trained folder. [the packaged model]")
    ] = None,
    task: Annotated[list[str] | None, typer.Option(help="Only this task; repeatable.")] = None,
    all_tasks: Annotated[
        bool, typer.Option("--all-tasks", help="Also those that are not offered.")
    ] = False,
    batch: Annotated[int, typer.Option(min=1, help="Questions at a time.")] = 16,
    final_keep: Annotated[float | None, typer.Option(help="C of pvtp and st3.")] = None,
    tau: Annotated[int | None, typer.Option(help="tau of vta and st3.")] = None,
    scorer: Annotated[str | None, typer.Option(help="What importance is.")] = None,
    device: Annotated[str, typer.Option()] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Exact-match accuracy of the demo model on held-out scenes."""
    given = {"final_keep": final_keep, "tau": tau, "scorer": scorer}
    live, processor = st3.load(str(model or "demo"), device=device)
    chosen = make_method(method, **{k: v for k, v in given.items() if v is not None})
    tasks = tuple(task or (ALL_TASKS if all_tasks else TASKS))
    unknown = sorted(set(tasks) - set(ALL_TASKS))
    if unknown:
        raise typer.BadParameter(f"unknown task {unknown[0]}; known: {', '.join(ALL_TASKS)}")
    found = accuracies(live, processor, chosen, scenes=scenes, seed=seed, tasks=tasks, batch=batch)
    overall = sum(found.values()) / len(found)
    if as_json:
        settings = chosen.settings(live.config.get_text_config().num_hidden_layers)
        document = {
            "tasks": found, "overall": overall, "method": method, "settings": settings,
            "scenes": scenes, "seed": seed,
        }  # fmt: skip
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
        return
    for name, value in (*found.items(), ("overall", overall)):
        sys.stdout.write(f"{name:18}{value:7.1%}\n")


if __name__ == "__main__":
    typer.run(main)
