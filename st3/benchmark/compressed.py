"""What few bits give beside trimming, on the demo: `python -m st3.benchmark.compressed`.

Every quantisation of the weights with every method and width of the KV cache: bytes, time, and
what it costs. Answers, and the next-token distributions on the way, are compared with the untrimmed
model's with all its bits; accuracy is that of held-out scenes, as in `st3 sweep`.
"""

from __future__ import annotations

import datetime
import json
import shlex
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from st3.files import write_text
from st3.inference.loading import load
from st3.inference.weights import live_bytes
from st3.machine import describe_machine
from st3.methods import make_method
from st3.methods.base import KV_CACHE_DTYPES
from st3.profiling.latency import measure
from st3.profiling.picture import picture_of
from st3.profiling.runs import beside_stock
from st3.profiling.shape import Workload
from st3.sweep.fidelity import outcomes, references, summary
from st3.sweep.questions import demo_questions
from st3.tables import Table
from st3.units import si

_MODEL = "demo"
_LONGEST = 64  # tokens of an answer


def cells(
    weights: Sequence[str],
    methods: Sequence[str],
    *,
    scenes: int,
    seed: int,
    batch: int,
    repeats: int,
    dtype: str,
) -> Iterator[dict[str, Any]]:
    """One row after the other.

    Args:
        weights: quantisations, see `st3.load`; "none" is `dtype`.
        methods: as `st3.trim` knows them, without parameters; each with all `KV_CACHE_DTYPES`.
        scenes, seed, batch: of the questions.
        repeats: of the timed runs.
        dtype: of whatever is not quantised.
    """
    whole, processor = load(_MODEL, dtype=dtype)
    asked = demo_questions(scenes, seed)
    known = references(whole, processor, asked, batch=batch, max_new_tokens=_LONGEST)
    visual = picture_of(whole.config).tokens
    work = Workload(visual, text=64, new=32)
    ways = {
        f"{method}, {kind}": make_method(method, kv_cache_dtype=kind)
        for method in methods
        for kind in KV_CACHE_DTYPES
    }
    for name in weights:
        model = whole
        if name != "none":
            model, _ = load(_MODEL, dtype=dtype, quantization=name)
        timed, _ = measure(model, work, beside_stock(ways), repeats=repeats, min_seconds=0)
        for label, method in ways.items():
            runs = timed[label].runs
            kept = runs[-1].kv_bytes
            assert kept is not None
            yield {
                "weights": name,
                "weights_bytes": sum(live_bytes(model).values()),
                "method": method.name,
                "kv_cache_dtype": method.kv_cache_dtype,
                "kv_bytes": kept[0],
                "ttft_ms": statistics.median(run.ttft for run in runs),
                "tpot_ms": statistics.median(step for run in runs for step in run.steps),
                "e2e_ms": statistics.median(run.total for run in runs),
                "questions": len(asked),
                **summary(
                    [
                        outcome
                        for reference in known
                        for outcome in outcomes(model, processor, reference, method, _LONGEST)
                    ]
                ),
            }


def table(document: Mapping[str, Any]) -> Table:
    """A line a row."""
    rows: list[dict[str, Any]] = document["compressed"]
    full, settings = rows[0], document["settings"]
    title = (
        f"Weights, trimming and KV cache in few bits on the demo, {settings['dtype']} beside them, "
        f"{full['questions']} questions"
    )
    heads = (
        "weights", "method", "KV cache", "weights' bytes", "KV bytes", "KV of all", "TTFT ms",
        "TPOT ms", "right %", "same answer %", "KL, nats",
    )  # fmt: skip
    lines = [
        (
            row["weights"],
            row["method"],
            row["kv_cache_dtype"],
            si(row["weights_bytes"], "B"),
            si(row["kv_bytes"], "B"),
            f"{row['kv_bytes'] / full['kv_bytes']:.1%}",
            f"{row['ttft_ms']:.0f}",
            f"{row['tpot_ms']:.1f}",
            f"{100 * row['accuracy']:.1f} "
            f"({100 * row['accuracy_low']:.1f}-{100 * row['accuracy_high']:.1f})",
            f"{100 * row['fidelity']:.1f}",
            f"{row['kl']:.1e}",
        )
        for row in rows
    ]
    return Table(title, heads, tuple(lines))


def main(
    output: Annotated[Path, typer.Option(help="Where to save the rows.")],
    weights: Annotated[str, typer.Option(help="Quantisations.")] = "none,torchao-int8,torchao-int4",
    methods: Annotated[str, typer.Option(help="Methods.")] = "none,st3",
    scenes: Annotated[int, typer.Option(min=1, help="Held-out scenes.")] = 60,
    seed: Annotated[int, typer.Option(min=0, help="Which scenes.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Questions at a time.")] = 16,
    repeats: Annotated[int, typer.Option(min=1, help="Timed rounds.")] = 5,
    dtype: Annotated[str, typer.Option(help="Of what is not quantised.")] = "float32",
) -> None:
    """Measure, print a line a row, and save."""
    asked: dict[str, Any] = {
        "scenes": scenes, "seed": seed, "batch": batch, "repeats": repeats, "dtype": dtype,
    }  # fmt: skip
    settings = {
        **asked,
        "command": shlex.join(["python", "-m", "st3.benchmark.compressed", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
    }
    rows: list[dict[str, Any]] = []
    machine = describe_machine(torch.device("cpu"), getattr(torch, dtype))
    for row in cells(weights.split(","), methods.split(","), **asked):
        rows.append(row)
        typer.echo(json.dumps(row), err=True)
        document = {"compressed": rows, "settings": settings, "machine": machine}
        write_text(output, json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
