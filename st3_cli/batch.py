"""`st3 batch SOURCE --output answers.jsonl`: one answer to each of many rows; it can be stopped and
goes on.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from st3_cli import method_options as m
from st3_cli import options as o
from st3_cli import question as q
from st3_cli.batch_report import print_report
from st3_cli.console import aside, leave_talking, quiet_transformers
from st3_cli.ctrl_c import INTERRUPTED
from st3_cli.errors import UsageError
from st3_cli.method_choice import build_method, read_settings
from st3_cli.models import check_device_map, load_model, note_hub
from st3_cli.outputs import check_output
from st3_cli.progress import batch_bar

if TYPE_CHECKING:
    from st3.batch.row import Result, Row

EXAMPLES = o.examples(
    "st3 batch photos --prompt 'Describe it.' --output captions.jsonl --model 7b",
    "st3 batch questions.jsonl --output answers.parquet --model 7b --method st3 --tau 64",
    "st3 batch 'shards-{000..127}.tar' --prompt 'A label, please.' --output labels.jsonl",
    "torchrun --nproc-per-node 8 -m st3_cli batch photos --prompt ... --output captions.jsonl",
)
ROWS = "Rows"


class Engine(enum.StrEnum):
    """Who computes."""

    local = "local"
    ray = "ray"
    vllm = "vllm"


@m.takes_method_options
def batch(
    source: Annotated[
        list[str],
        typer.Argument(
            help="A folder, a glob in quotes, a .jsonl, .csv or .parquet file (columns image, "
            "images or video; prompt; id), tar shards (shards-{000..127}.tar), or - for JSON lines "
            "on standard input.",
            metavar="SOURCE", show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        o.option(
            o.OUTPUT, "--output", "-o", metavar="FILE", show_default=False,
            help="Answers, .jsonl or .parquet; where there are some, the run goes on.",
        ),
    ],
    prompt: Annotated[
        str | None,
        o.option(
            ROWS, "--prompt", "-p", metavar="TEXT", callback=q.utf8,
            help="Asked of every row that has none of its own.",
        ),
    ] = None,
    model: o.ModelOption = "demo",
    method: m.MethodOption = "st3",
    given: m.Given = m.NOTHING,
    settings: m.SettingsOption = None,
    max_new_tokens: Annotated[
        int, o.option(o.MODEL, min=1, help="Most tokens to generate.", metavar="N")
    ] = 128,
    batch_size: Annotated[
        int | None,
        o.option(
            ROWS, min=1, metavar="N", show_default="as memory allows",
            help="Rows that are computed together at most.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        o.option(
            ROWS, min=0, metavar="N", show_default="a core fewer than there are, at most 8",
            help="Processes that decode and process pictures ahead of the model.",
        ),
    ] = None,
    frames: q.FramesOption = None,
    fps: q.FpsOption = None,
    engine: Annotated[
        Engine,
        o.option(
            o.COMPUTE, "--engine", metavar="NAME",
            help="local: this machine, or torchrun's processes; ray: actors of a Ray cluster; "
            "vllm: methods that choose before the decoder, in vLLM.",
        ),
    ] = Engine.local,
    ray_address: Annotated[
        str | None,
        o.option(
            o.COMPUTE, "--ray-address", metavar="ADDRESS", show_default="a local one is started",
            help="Of a Ray cluster.",
        ),
    ] = None,
    ray_actors: Annotated[
        int | None,
        o.option(
            o.COMPUTE, "--ray-actors", metavar="N", min=1,
            show_default="one a GPU, or else one",
            help="Ray actors, each of which holds the model.",
        ),
    ] = None,
    quantization: o.QuantizationOption = None,
    device: o.DeviceOption = o.Device.auto,
    device_map: o.DeviceMapOption = None,
    dtype: o.DtypeOption = o.Dtype.auto,
    attn_implementation: o.AttentionOption = None,
    cuda_graphs: o.CudaGraphsOption = False,
    compile: o.CompileOption = o.Compiler.off,
    force: Annotated[
        bool, o.flag(o.OUTPUT, "--force", help="Begin anew, whatever FILE holds.")
    ] = False,
    retry_errors: Annotated[
        bool, o.flag(o.OUTPUT, "--retry-errors", help="Ask rows of FILE with an error again.")
    ] = False,
    json: o.JsonOption = False,
    debug: o.DebugOption = False,
) -> None:  # fmt: skip
    """Answer one question about each of many pictures, in batches; stopped, it goes on.

    Answers are written as they come, and lie in the order of rows in the end.
    A row that cannot be answered gets an error, and stops nothing.
    The same command goes on after any end, on any number of processes.
    """
    check_output("--output", output, True, ".jsonl", ".parquet")
    check_device_map(device, device_map)
    q.check_frames(frames, fps)
    if force and retry_errors:
        raise UsageError("--force begins anew, --retry-errors goes on: give one of them")
    if engine is not Engine.ray and (ray_address is not None or ray_actors is not None):
        raise UsageError("--ray-address and --ray-actors go with --engine ray")
    if engine is Engine.ray and device_map is not None:
        raise UsageError("--engine ray: leave --device-map out, each actor holds a whole model")
    if engine is Engine.vllm:
        _check_for_vllm(
            quantization=quantization, device_map=device_map, frames=frames, fps=fps,
            attn_implementation=attn_implementation, cuda_graphs=cuda_graphs,
            compile=compile is not o.Compiler.off,
        )  # fmt: skip

    from st3.batch import sources
    from st3.batch.asking import Course
    from st3.batch.journal import written
    from st3.batch.ranks import device_of, find_ranks
    from st3.batch.results import ResultsError
    from st3.batch.run import answer_file
    from st3.batch.settings import settings_of
    from st3.inference import checkpoints, configs
    from st3.units import count

    quiet_transformers()
    if engine is Engine.ray:
        from st3.batch.ray_engine import check_ray

        check_ray()
    if engine is Engine.vllm:
        from st3.serving.vllm.batching import check_plugin, check_vllm, overrides_of

        check_vllm()
    method = read_settings(settings, method, "st3", given)
    config = configs.load_config(checkpoints.find(model))
    layers = config.get_text_config().num_hidden_layers
    chosen = build_method(method, layers, given)
    if engine is Engine.vllm and overrides_of(chosen, config) is not None:
        check_plugin()
    ranks = find_ranks(device.value)
    if ranks.rank:
        leave_talking(ranks.rank)
    if ranks.world > 1 and (engine is not Engine.local or "-" in source):
        what = "standard input" if engine is Engine.local else f"--engine {engine}"
        raise UsageError(f"{what} does not go with torchrun: start one process")
    note_hub(model)
    if clash := sources.shared(source, written(output)):
        raise UsageError(f"--output: {clash} is a file of the source: give another name")
    asked = sources.open_source(*source, prompt=prompt)
    sources.check_prompts(asked)
    _note_foreign(model, asked.rows)
    where = "auto" if device_map else str(device_of(device.value, ranks))
    how: dict[str, Any] = {
        "dtype": dtype.value, "quantization": _value(quantization),
        "attn_implementation": _value(attn_implementation),
    }  # fmt: skip
    named = {"name": chosen.name, **chosen.settings(layers)}
    decides = settings_of(asked, model, named, max_new_tokens, **how, frames=frames, fps=fps)
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens, "batch_size": batch_size, "frames": frames, "fps": fps,
        "workers": _workers(ranks.world) if workers is None else workers,
        "cuda_graphs": cuda_graphs, "compile": compile.value,
    }  # fmt: skip
    course, began, told = Course(), time.perf_counter(), False

    def local(rows: Sequence[Row]) -> Generator[list[Result], None, None]:
        from st3.batch.ahead import warm_up
        from st3.batch.answering import batches

        nonlocal began
        warm_up(options["workers"])
        live, processor = load_model(
            model, where, dtype, attn_implementation, quantization, device_map,
            quiet=ranks.rank > 0,
        )  # fmt: skip
        began = time.perf_counter()  # of pictures a second, and of the shares
        yield from batches(live, processor, rows, chosen, course=course, **options)

    def on_ray(rows: Sequence[Row]) -> Generator[list[Result], None, None]:
        from st3.batch.ray_engine import ray_batches

        load = {"name": model, "device": device.value, **how}
        yield from ray_batches(
            rows, load, chosen, options, course, address=ray_address, actors=ray_actors
        )

    def in_vllm(rows: Sequence[Row]) -> Generator[list[Result], None, None]:
        from st3.serving.vllm.batching import vllm_batches

        yield from vllm_batches(rows, model, dtype.value, chosen, options, course)

    answering = {Engine.local: local, Engine.ray: on_ray, Engine.vllm: in_vllm}
    try:
        with batch_bar("" if ranks.world == 1 else f"process 1 of {ranks.world}") as bar:

            def begin(before: int, mine: int) -> None:
                bar.begin(mine)
                if before:
                    aside(f"there already: {before} of {count(len(asked.rows), 'row')}")

            def note(results: Sequence[Result]) -> None:
                nonlocal told
                if course.fit is not None and not told:
                    told = True
                    aside(str(course.fit))
                rate = course.shown / (time.perf_counter() - began) if course.shown else None
                bar(len(results), rate, course.shares())

            run = answer_file(
                asked, output, decides, answering[engine], ranks,
                again=force, retry=retry_errors, on_begin=begin, on_results=note,
            )  # fmt: skip
    except ResultsError as error:
        raise UsageError(str(error)) from None
    seconds, whole = time.perf_counter() - began, Course()
    for each in ranks.gather(course):
        whole.add(each)
    if ranks.rank:
        return
    print_report(run, whole, seconds, output, decides, json)
    if run.interrupted:
        raise typer.Exit(INTERRUPTED)
    if not run.whole:  # a process has died
        missing = count(run.rows - run.done, "row")
        raise ValueError(f"{missing} missing in {output}: the same command goes on")
    if run.errors == run.rows:
        raise ValueError(f'every row has an error: see "error" in {output}')


def _check_for_vllm(**given: Any) -> None:
    """What vLLM has options of its own for, or none at all."""
    for name, value in given.items():
        if value:
            raise UsageError(f"--engine vllm: leave --{name.replace('_', '-')} out")


def _workers(world: int) -> int:
    from st3.batch.ahead import sensible_workers
    from st3.machine import available_cores

    return sensible_workers(available_cores() // world)


def _value(option: enum.Enum | None) -> Any:
    return None if option is None else option.value


def _note_foreign(model: str, rows: Sequence[Row]) -> None:
    """The demo's note, by the first picture that can be read."""
    from st3.batch.preparing import open_any

    for row in rows[:3] if model == "demo" else ():
        try:
            q.note_foreign(model, [open_any(image) for image in row.images])
        except (ValueError, TypeError):
            continue
        return
