"""Pictures a second, one by one and in batches: `python -m st3.benchmark.batches --output FILE`.

Stock transformers, untrimmed and trimmed, on the demo and on `small`, a shape of 7B's depth
with random weights, whose answers all have the same length. Each way runs in a process of its own,
whose peak memory is its own, too. How much of the saving that arithmetic promises arrives on the
clock is `reached`.
"""

from __future__ import annotations

import datetime
import itertools
import json
import multiprocessing
import resource
import shlex
import statistics
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from st3.batch.answering import answer_all
from st3.batch.asking import Course
from st3.batch.row import make_row
from st3.demo.held_out import held_out
from st3.demo.packaging import build_processor
from st3.families.meta import meta_model
from st3.families.parts import find_parts
from st3.files import write_text
from st3.inference.device_map import home
from st3.inference.generation import answer
from st3.inference.loading import load
from st3.inference.presets import known_config
from st3.inference.random_weights import random_model
from st3.machine import describe_machine
from st3.methods import make_method
from st3.profiling.costs import costs_of
from st3.profiling.course import schedule_of
from st3.profiling.macs import MacCounter
from st3.profiling.picture import picture_of
from st3.profiling.shape import Workload
from st3.tables import Table
from st3.units import si

WAYS = {
    "stock, one by one": (None, 1, False, "off"),
    "stock, batched": (None, None, True, "off"),
    "none, batched": ("none", None, True, "off"),
    "st3, one by one": ("st3", 1, False, "off"),
    "st3, batched": ("st3", None, True, "off"),
    "st3, batched, compiled": ("st3", None, True, "inductor"),
}
"""Method, rows of a batch, whether it is `answer_all` that asks, and what compiles."""


def subject(name: str) -> tuple[Any, Any]:
    """A model and its processor: the packaged demo, or `small` with random weights."""
    if name == "demo":
        return load("demo")
    config = known_config(name)
    processor = build_processor()
    side = config.vision_config.image_size
    size = {"height": side, "width": side}
    processor.image_processor.size = processor.image_processor.crop_size = size
    processor.patch_size = config.vision_config.patch_size
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    config.image_token_index = config.image_token_id = image
    model = random_model(config)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    return model, processor


def measure(
    name: str, way: str, count: int, new: int, batch: int | None, rounds: int
) -> dict[str, Any]:
    """One way, after a round of warm-up, which compiles what is compiled; the median of others."""
    model, processor = subject(name)
    spec, size, whole, compiler = WAYS[way]
    asked = list(itertools.islice(held_out(count, 0), count))
    rows = [
        make_row({"image": one.picture, "prompt": one.question.prompt}, number)
        for number, one in enumerate(asked)
    ]

    def run(some: Any, course: Course) -> int:
        if not whole:
            method = None if spec is None else make_method(spec)
            return sum(
                answer(
                    model, processor, row.images[0], row.prompt, method, max_new_tokens=new
                ).new_tokens
                for row in some
            )
        found = answer_all(
            model, processor, some, spec, max_new_tokens=new, batch_size=size or batch,
            course=course, compile=compiler,
        )  # fmt: skip
        return sum(result.new_tokens or 0 for result in found)

    run(rows, Course())
    seconds, tokens, course = [], 0, Course()
    for _ in range(rounds):
        course, began = Course(), time.perf_counter()
        tokens = run(rows, course)
        seconds.append(time.perf_counter() - began)
    taken = statistics.median(seconds)
    device = home(model)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    return {
        "model": name, "way": way, "rows": count, "seconds": taken,
        "spread": (max(seconds) - min(seconds)) / taken, "pictures_per_second": count / taken,
        "new_tokens": tokens, "shares": course.shares() if whole else None,
        "row_steps": course.row_steps if whole else None,
        "kv_bytes_per_row": None if course.fit is None else course.fit.kv_bytes,
        "peak_memory_bytes": peak, "macs": _macs(model.config, spec, tokens / count),
    }  # fmt: skip


def _macs(config: Any, spec: str | None, new: float) -> int:
    """Of a picture and its answer, by arithmetic, for a prompt with ten words."""
    empty = meta_model(config)
    picture = picture_of(config)
    work = Workload(picture.tokens, text=12, new=max(2, round(new)))
    schedule = schedule_of(make_method(spec or "none"), find_parts(empty), work)
    cost = costs_of(MacCounter(empty), picture, schedule, work, 4)
    return sum(
        part or 0
        for part in (cost.prefill_macs, cost.decode_macs, cost.vision_macs, cost.projector_macs)
    )


def reached(row: Mapping[str, Any], untrimmed: Mapping[str, Any]) -> float:
    """Share of the saving that arithmetic promises which arrives on the clock."""
    saved = 1 - row["seconds"] / untrimmed["seconds"]
    return float(saved / (1 - row["macs"] / untrimmed["macs"]))


def table(document: Mapping[str, Any]) -> Table:
    """A line a way."""
    lines, settings = [], document["settings"]
    for row in document["batches"]:
        of = [other for other in document["batches"] if other["model"] == row["model"]]
        ways = {other["way"]: other for other in of}
        stock, plain = ways["stock, one by one"], ways.get("none, batched")
        share = "-"
        if row["way"].startswith("st3, batched") and plain is not None:
            share = f"{reached(row, plain):.0%}"
        lines.append(
            (
                row["model"],
                row["way"],
                f"{row['pictures_per_second']:.3g}",
                f"{stock['seconds'] / row['seconds']:.2f}x",
                share,
                f"{row['spread']:.0%}",
                si(row["peak_memory_bytes"], "B"),
            )
        )
    title = f"Pictures a second, {settings['rows']} rows, at most {settings['new']} new tokens"
    heads = ("model", "way", "pictures/s", "speedup", "reached", "spread", "peak memory")
    return Table(title, heads, tuple(lines))


def main(
    output: Annotated[Path, typer.Option(help="Where to save the rows, .json.")],
    models: Annotated[str, typer.Option(help="demo, small.")] = "demo,small",
    rows: Annotated[int, typer.Option(min=2, help="Pictures.")] = 64,
    new: Annotated[int, typer.Option(min=2, help="Most new tokens of an answer.")] = 24,
    batch: Annotated[int | None, typer.Option(min=1, help="Rows of a batch.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds.")] = 3,
) -> None:
    """Measure, save as it goes, and print the table."""
    found: list[dict[str, Any]] = []
    document = {
        "batches": found,
        "settings": {
            "rows": rows, "new": new, "batch": batch, "rounds": rounds,
            "command": shlex.join(["python", "-m", "st3.benchmark.batches", *sys.argv[1:]]),
            "date": datetime.date.today().isoformat(),
        },
        "machine": describe_machine(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
    }  # fmt: skip
    for name, way in itertools.product(models.split(","), WAYS):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone:
            found.append(alone.submit(measure, name, way, rows, new, batch, rounds).result())
        typer.echo(json.dumps(found[-1]), err=True)
        write_text(output, json.dumps(document, indent=2) + "\n")
    sys.stdout.write(table(document).markdown())


if __name__ == "__main__":
    typer.run(main)
