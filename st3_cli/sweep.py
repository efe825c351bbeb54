"""`st3 sweep`: the S x R grid, tau and peers: what each setting saves and what it costs."""

from __future__ import annotations

import datetime
import hashlib
import math
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from st3.files import plainly
from st3_cli import grid_options as g
from st3_cli import options as o
from st3_cli import question as q
from st3_cli.console import err, print_json, quiet_transformers
from st3_cli.ctrl_c import INTERRUPTED
from st3_cli.errors import UsageError
from st3_cli.models import check_device_map, device_map_of, load_model, note_hub
from st3_cli.outputs import check_folder
from st3_cli.progress import cell_bar
from st3_cli.sweep_report import print_sweep, say_how_long

EXAMPLES = o.examples(
    "st3 sweep",
    "st3 sweep --final-keep 1%,5% --taus 32,64,128,none",
    "st3 sweep --methods all --budget-tokens 64,128,192 --beside st3",
    "st3 sweep --model 7b --images photos --prompt 'Describe it.' --budget 'fidelity>=0.99'",
)
DATA = "Questions"


def _data(help: str, **more: Any) -> Any:
    return o.option(DATA, help=help, **more)


def sweep(
    model: o.ModelOption = "demo",
    strides: g.StridesOption = "1,2,4,8",
    final_keep: g.FinalKeepsOption = None,
    ratios: g.RatiosOption = None,
    taus: g.TausOption = "128",
    prune_ratio: g.PruneRatioOption = "50%",
    methods: g.PeersOption = None,
    budget_tokens: g.BudgetTokensOption = None,
    beside: g.BesideOption = None,
    images: Annotated[Path | None, _data("A folder of pictures.", metavar="FOLDER")] = None,
    prompt: Annotated[
        str | None,
        _data("The question about each of them.", metavar="TEXT", callback=q.utf8),
    ] = None,
    data: Annotated[
        Path | None,
        _data('Lines {"image": ..., "prompt": ..., "answer": ...?}.', metavar="FILE.jsonl"),
    ] = None,
    scenes: Annotated[
        int, _data("Else scenes of the demo's own, a question each.", min=1, metavar="N")
    ] = 120,
    max_new_tokens: Annotated[int, _data("Longest answer.", min=1, metavar="N")] = 64,
    batch_size: Annotated[int, _data("Questions at a time.", min=1, metavar="N")] = 16,
    quantization: o.QuantizationOption = None,
    device: o.DeviceOption = o.Device.auto,
    device_map: o.DeviceMapOption = None,
    dtype: o.DtypeOption = o.Dtype.auto,
    attn_implementation: o.AttentionOption = None,
    seed: o.SeedOption = 0,
    budget: Annotated[
        str | None,
        o.option(
            o.OUTPUT, metavar="BOUNDS",
            help="Name the fastest setting within it: fidelity>=0.99,kv<=45%.",
        ),
    ] = None,
    output: Annotated[
        Path,
        o.option(
            o.OUTPUT, metavar="FOLDER", help="A new one, or that of a sweep to go on with.",
        ),
    ] = Path("st3-sweep"),
    json: o.JsonOption = False,
    debug: o.DebugOption = False,
) -> None:  # fmt: skip
    """Sweep the settings: compute, memory, time, and fidelity to the untrimmed model.

    Every cell is saved as it ends; the same command goes on where it was stopped.
    For several processes: accelerate launch --module st3_cli.app sweep ...
    """
    if images is not None and data is not None:
        raise UsageError("--images and --data both say what to ask: give one of them")
    if (prompt is None) != (images is None):
        raise UsageError("--images and --prompt go together: the same question about every picture")
    if ratios is not None and final_keep is not None:
        raise UsageError("--ratios and --final-keep both say how much is left: give one of them")
    if budget_tokens and methods is None:
        raise UsageError("--budget-tokens compares methods: give --methods all, or a list of them")
    check_folder("--output", output)
    check_device_map(device, device_map)

    from st3.batch.ranks import device_of, find_ranks
    from st3.inference.configs import find_config
    from st3.inference.device_map import places_of
    from st3.inference.loading import check_whole
    from st3.inference.quantization import find_quantization
    from st3.machine import describe_machine
    from st3.methods import parse_methods
    from st3.sweep import album, equal, grid, pairs, questions, results
    from st3.sweep.folder import RESUMES, FolderError
    from st3.sweep.run import Sweep, run_cells

    quiet_transformers()
    note_hub(model)
    layers = find_config(model).get_text_config().num_hidden_layers
    try:
        bounds = results.parse_budget(budget) if budget is not None else []
        every = methods == "all"
        peers = equal.all_methods() if every else parse_methods(methods) if methods else ()
        cells = [] if budget_tokens else grid.make_grid(
            layers, strides, ratios or (), [tau or None for tau in taus],
            finals=() if ratios else final_keep or g.FINALS, prune_ratio=prune_ratio, peers=peers,
        )  # fmt: skip
    except ValueError as error:
        raise UsageError(str(error)) from None
    if cells and all(cell.problem for cell in cells):
        raise UsageError(f"no cell of the grid can be: {cells[0].problem}")
    skipped: list[str] = []
    if data is not None:
        asked, skipped = questions.file_questions(data)
    elif images is not None and prompt is not None:
        asked, skipped = questions.folder_questions(images, prompt)
    elif model == "demo":
        asked = questions.demo_questions(scenes, seed)
    else:
        raise UsageError("only the demo has questions of its own: give --images or --data")
    if budget_tokens:
        sizes = sorted((question.picture.size for question in asked), key=math.prod)
        try:
            cells = equal.equal_cells(
                find_config(model), list(peers), budget_tokens, sizes[len(sizes) // 2]
            )
        except ValueError as error:
            raise UsageError(str(error)) from None
        if all(cell.problem for cell in cells):
            raise UsageError(f"no method can leave so many tokens: {cells[0].problem}")
    if beside and all(pairs.named(cell.spec, cell.budget) != beside for cell in cells):
        names = dict.fromkeys(pairs.named(cell.spec, cell.budget) for cell in cells)
        raise UsageError(f"--beside {beside}: it is none of {', '.join(names)}")
    if any(key == "accuracy" for key, _, _ in bounds) and not questions.all_labelled(asked):
        lacking = next(question.label for question in asked if question.answer is None)
        raise UsageError(f"--budget asks for accuracy, but {lacking} has no answer")
    if data is not None or images is not None:
        q.note_foreign(model, [question.picture for question in asked])
    for line in skipped:
        err.print(f"skipped {line}", style="yellow", soft_wrap=True)
    # What cannot be is refused before the folder is made.
    how = None if quantization is None else find_quantization(quantization.value)
    if device_map is not None:
        check_whole(how, places_of(device_map_of(device_map), find_config(model)))
    ranks = find_ranks(device.value)
    where = device_of(device.value, ranks)
    settings = {
        "model": model, "layers": layers, "cells": [cell.spec for cell in cells],
        "questions": len(asked), "skipped": len(skipped), "data": _fingerprint(asked),
        "max_new_tokens": max_new_tokens, "batch_size": batch_size, "seed": seed,
        "dtype": dtype.value,
        "attn_implementation": attn_implementation.value if attn_implementation else None,
        "quantization": quantization.value if quantization else None,
    }  # fmt: skip
    if own := grid.origins(cells, layers):
        settings["origins"] = own

    def make() -> Sweep:
        live, processor = load_model(
            model, "auto" if device_map else str(where), dtype, attn_implementation,
            quantization, device_map, quiet=ranks.rank > 0,
        )  # fmt: skip
        return Sweep(live, processor, asked, batch=batch_size, max_new_tokens=max_new_tokens)

    try:
        with cell_bar() as on_cell:
            document = run_cells(output, settings, cells, make, ranks, on_cell, say_how_long)
    except FolderError as error:
        raise UsageError(str(error)) from None
    if ranks.rank:
        return
    if document["baseline"] is None:
        err.print(f"interrupted before the first cell; the same command goes on in {output}")
        raise typer.Exit(INTERRUPTED)
    document |= {
        "pareto": results.pareto(document["cells"]),
        "settings": settings
        | {
            "date": datetime.date.today().isoformat(),
            "command": shlex.join(["st3", *sys.argv[1:]]),
        },
        "machine": describe_machine(where),
        "budget": budget,
        "chosen": results.within(document["cells"], bounds) if bounds else None,
    }
    if beside:
        pairs.pair(document, beside)
    with plainly("write into", output, RESUMES):
        album.save_sweep(output, document, layers)
    if json:
        print_json(document)
    else:
        print_sweep(document, album.tables_of(document), output)
    if document["interrupted"]:
        done = sum("fidelity" in row for row in document["cells"])
        err.print(
            f"interrupted: {done} of {document['total']} cells have results; the same command "
            f"goes on in {output}"
        )
        raise typer.Exit(INTERRUPTED)


def _fingerprint(asked: Any) -> str:
    """Of all pictures, prompts and answers: other ones are another sweep."""
    found = hashlib.sha256()
    for question in asked:
        found.update(question.picture.tobytes())
        found.update(repr((question.picture.size, question.prompt, question.answer)).encode())
    return found.hexdigest()[:16]
