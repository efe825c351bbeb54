"""`st3 evaluate`: the paper's tables, and any benchmark of the field, for any method; it can be
stopped and goes on.
"""

from __future__ import annotations

import datetime
import enum
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from st3_cli import options as o
from st3_cli.console import aside, leave_talking, quiet_transformers
from st3_cli.ctrl_c import INTERRUPTED
from st3_cli.errors import UsageError
from st3_cli.evaluate_report import evaluation_bar, print_report
from st3_cli.models import load_model, note_hub
from st3_cli.outputs import check_folder

if TYPE_CHECKING:
    from st3.methods import Method

EXAMPLES = o.examples(
    "st3 evaluate --table 1 --model 7b --methods none,st3,fastv",
)
BENCHMARKS = "Benchmarks"


class Table(enum.StrEnum):
    """Of the ST3 paper."""

    one = "1"
    two = "2"


def evaluate(
    table: Annotated[
        Table | None,
        o.option(
            BENCHMARKS, "--table", metavar="1|2",
            help="The paper's: ScienceQA-Img, MMMU, MMBench; or COCO2017, Flickr30k, NoCaps.",
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        o.option(BENCHMARKS, "--tasks", metavar="LIST", help="In its place, tasks of lmms-eval."),
    ] = None,
    limit: Annotated[
        int | None,
        o.option(
            BENCHMARKS, "--limit", metavar="N", min=1, help="First documents of each task only."
        ),
    ] = None,
    judge: Annotated[
        bool, o.flag(BENCHMARKS, "--judge", help="Allow scores that a paid model gives.")
    ] = False,
    model: o.ModelOption = "demo",
    methods: Annotated[
        str,
        o.option(o.MODEL, "--methods", metavar="LIST", help="See `st3 methods`; stock is one."),
    ] = "none,st3",
    batch_size: Annotated[
        int | None,
        o.option(
            o.COMPUTE, "--batch-size", min=1, metavar="N", show_default="what fits",
            help="Prompts at a time.",
        ),
    ] = None,
    workers: Annotated[
        int, o.option(o.COMPUTE, "--workers", min=0, metavar="N", help="To process pictures.")
    ] = 0,
    quantization: o.QuantizationOption = None,
    device: o.DeviceOption = o.Device.auto,
    dtype: o.DtypeOption = o.Dtype.auto,
    output: Annotated[
        Path, o.option(o.OUTPUT, "--output", metavar="FOLDER", help="Of all answers.")
    ] = Path("st3-evaluation"),
    retry_errors: Annotated[
        bool, o.flag(o.OUTPUT, "--retry-errors", help="Ask documents with an error again.")
    ] = False,
    json: o.JsonOption = False,
    debug: o.DebugOption = False,
) -> None:  # fmt: skip
    """Score methods on the field's benchmarks; stopped, the same command goes on."""
    from st3.evaluation import checks
    from st3.evaluation.benchmarks import BENCHMARKS as KNOWN
    from st3.evaluation.benchmarks import TABLES

    if (table is None) == (tasks is None):
        raise UsageError("give --table 1, --table 2 or --tasks, one of them")
    listed = tuple(filter(None, map(str.strip, (tasks or "").split(","))))
    wanted = TABLES[int(table)] if table else listed
    if not wanted:
        raise UsageError("--tasks names none")
    check_folder("--output", output)
    checks.check_extra()
    known = [KNOWN[name] for name in wanted if name in KNOWN]
    checks.check_java([one.task for one in known if one.java])
    checks.check_login([one.task for one in known if one.login])
    checks.check_room(output)
    checks.check_folder(output)
    chosen = _methods(methods)

    from st3.batch.ranks import device_of, find_ranks
    from st3.batch.results import ResultsError
    from st3.evaluation import album, harness
    from st3.evaluation.evaluate import evaluate as run
    from st3.evaluation.identity import cell_settings, model_identity
    from st3.evaluation.results import Coster
    from st3.evaluation.run import Cell
    from st3.inference.configs import find_config
    from st3.inference.loading import find_dtype
    from st3.inference.quantization import find_quantization
    from st3.machine import describe_machine

    quiet_transformers()
    note_hub(model)
    config = find_config(model)
    layers = config.get_text_config().num_hidden_layers
    for label, method in chosen.items():
        _check(label, method, layers)
    ranks = find_ranks(device.value)
    if ranks.rank:
        leave_talking(ranks.rank)
    where = device_of(device.value, ranks)
    bits = None if quantization is None else find_quantization(quantization.value)
    numbers = find_dtype(dtype.value, where, config, bits)
    how = {
        "dtype": str(numbers).removeprefix("torch."), "device": where.type,
        "quantization": quantization.value if quantization else None,
    }  # fmt: skip
    try:
        exams = harness.open_exams(wanted, limit, judge=judge)
    except harness.UnknownTask as error:
        raise UsageError(str(error)) from None
    identity = model_identity(model)
    pairs = [
        (
            exam,
            Cell(
                exam.name, label, method,
                cell_settings(identity, exam.settings, _named(label, method, layers), **how),
            ),
        )
        for exam in exams
        for label, method in chosen.items()
    ]  # fmt: skip

    def load() -> tuple[Any, Any]:
        return load_model(
            model, str(where), dtype, None, quantization, quiet=ranks.rank > 0
        )  # fmt: skip

    coster = Coster(config, numbers.itemsize)
    try:
        document = run(
            output, pairs, load, ranks, coster, model, evaluation_bar,
            batch_size=batch_size, workers=workers, retry=retry_errors,
        )  # fmt: skip
    except ResultsError as error:
        raise UsageError(str(error)) from None
    if ranks.rank:
        return
    document |= {
        "settings": {
            "model": model, "tasks": list(wanted), "methods": list(chosen), "limit": limit, **how,
            "date": datetime.date.today().isoformat(),
            "command": shlex.join(["st3", *sys.argv[1:]]),
        },
        "machine": describe_machine(where, numbers),
    }  # fmt: skip
    album.save_evaluation(output, document)
    print_report(document, json)
    aside(f"wrote {len(document['files'])} files into {output}")
    if document["interrupted"]:
        raise typer.Exit(INTERRUPTED)
    if any(row["scoring_error"] for row in document["rows"]):
        raise typer.Exit(1)


def _methods(text: str) -> dict[str, Method | None]:
    """Label -> method; `stock` is none of ours.

    Raises:
        UsageError: as `parse_methods`.
    """
    from st3.methods import parse_methods

    pieces = [piece.strip() for piece in text.split(",")]
    ours = ",".join(piece for piece in pieces if piece != "stock")
    found: dict[str, Method | None] = {}
    if "stock" in pieces:
        found["stock"] = None
    try:
        found |= parse_methods(ours) if ours or not found else {}
    except ValueError as error:
        raise UsageError(str(error)) from None
    return found


def _check(label: str, method: Method | None, layers: int) -> None:
    try:
        if method is not None:
            method.schedule(layers)
    except ValueError as error:
        raise UsageError(f"{label}: {error}") from None


def _named(label: str, method: Method | None, layers: int) -> dict[str, Any]:
    return {"name": "stock"} if method is None else {"name": method.name, **method.settings(layers)}
