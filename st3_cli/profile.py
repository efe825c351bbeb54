"""`st3 profile`: compute, memory and time of every method, with or without weights and a GPU."""

from __future__ import annotations

import shlex
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from st3.files import plainly
from st3_cli import method_options as m
from st3_cli import options as o
from st3_cli import workload_options as w
from st3_cli.console import aside, print_json_text, quiet_transformers
from st3_cli.ctrl_c import INTERRUPTED
from st3_cli.errors import UsageError
from st3_cli.method_choice import build_methods, read_settings
from st3_cli.models import check_device_map, device_map_of, note_set_aside
from st3_cli.outputs import check_output
from st3_cli.profile_report import save, show
from st3_cli.progress import run_bar

EXAMPLES = o.examples(
    "st3 profile --model 13b",
    "st3 profile --model small --repeats 3",
    "st3 profile --model qwen2.5-vl-7b --picture 4928x2773",
    "st3 profile --model qwen2.5-vl-7b --video 64x448x448",
    "st3 profile --methods none,st3,fastv:k=2,r=0.75,vtw:k=6 --output report.md",
)
DEFAULT_METHODS = "none,pvtp,vta,st3,fastv,vtw,pyramiddrop"


@m.takes_method_options
def profile(
    model: Annotated[
        str,
        o.option(
            o.MODEL, "--model", "-m", metavar="NAME",
            help="demo, a built-in shape (small, 7b, 13b, qwen2.5-vl-7b, ...), a Hub id (or "
            "id@revision), or a folder.",
        ),
    ] = "demo",
    config: Annotated[
        Path | None, o.option(o.MODEL, metavar="FILE", help="A config.json in place of --model.")
    ] = None,
    weights: Annotated[
        w.Weights,
        o.option(
            o.MODEL, metavar="NAME",
            help=f"What to time: {o.one_of(w.Weights)}; auto: trained ones if they are here, else "
            "random ones of the true shape, where they fit.",
        ),
    ] = w.Weights.auto,
    latency: Annotated[bool, o.option(o.MODEL, help="Time it, or only count.", metavar="")] = True,
    methods: Annotated[
        str,
        o.option(
            o.METHOD, "--methods", "--method", metavar="LIST",
            help="Several, of those that `st3 methods` lists; the options below go to the ST3 "
            "family in it. stock, transformers' own generate, is always measured as well.",
            show_default=DEFAULT_METHODS.replace(",", ", "),
        ),
    ] = DEFAULT_METHODS,
    given: m.Given = m.NOTHING,
    settings: m.SettingsOption = None,
    visual_tokens: Annotated[
        int | None,
        w.number("Visual tokens in a prompt.", **w.TOKENS, show_default="the pictures'"),
    ] = None,
    picture: Annotated[
        Any,
        o.option(
            w.WORK, metavar="WxH", parser=w.pixels, show_default="1344x896",
            help="Pixels of each picture; the family's processor says how many tokens they become.",
        ),
    ] = None,
    video: Annotated[
        Any,
        o.option(
            w.WORK, metavar="NxWxH", parser=w.film,
            help="Frames of a video in a prompt and their pixels, such as 64x448x448: counted, "
            "not timed.",
        ),
    ] = None,
    pictures: Annotated[int, w.number("Pictures in a prompt.", min=1)] = 1,
    text_tokens: Annotated[int, w.number("Text tokens in a prompt.", **w.TOKENS)] = 64,
    new_tokens: Annotated[int, w.number("Tokens to generate.", min=1)] = 64,
    batch_size: Annotated[
        Any, w.number("Prompts at a time; or several: 1,8.", parser=w.batch_sizes)
    ] = "1",
    repeats: Annotated[int, w.number("Timed rounds, at least.", min=1)] = 5,
    min_seconds: Annotated[
        float, w.number("Time for each method, at least, in seconds.", min=0)
    ] = 0.0,
    quantization: o.QuantizationOption = None,
    device_map: o.DeviceMapOption = None,
    device: o.DeviceOption = o.Device.auto,
    dtype: o.DtypeOption = o.Dtype.auto,
    attn_implementation: o.AttentionOption = None,
    cuda_graphs: o.CudaGraphsOption = False,
    compile: o.CompileOption = o.Compiler.off,
    openvino: Annotated[
        str | None,
        o.option(
            o.COMPUTE, metavar="FILE",
            help="Also time OpenVINO's own pipeline, untrimmed: under this Python interpreter, of "
            "an environment that has optimum-intel.",
        ),
    ] = None,
    seed: o.SeedOption = 0,
    detail: Annotated[bool, o.flag(o.OUTPUT, "--detail", help="Also MACs by part.")] = False,
    operators: Annotated[
        bool, o.flag(o.OUTPUT, "--operators", help="Also where the decoder's time goes.")
    ] = False,
    output: Annotated[
        Path | None,
        o.option(o.OUTPUT, metavar="FILE", help="Save it as FILE.json, .csv or .md."),
    ] = None,
    plot: Annotated[
        Path | None,
        o.option(
            o.OUTPUT, metavar="FILE.png",
            help="Draw visual tokens per layer and over time, MACs and KV cache.",
        ),
    ] = None,
    force: Annotated[bool, o.flag(o.OUTPUT, "--force", help="Overwrite files.")] = False,
    json: o.JsonOption = False,
    debug: o.DebugOption = False,
) -> None:  # fmt: skip
    """Compute, memory and time of trimming methods, side by side.

    MACs and KV bytes are counted from the configuration, without weights or a GPU.
    Time is measured where the model fits, and otherwise said to be not measured.
    """
    check_output("--output", output, force, ".json", ".csv", ".md")
    check_output("--plot", plot, force, ".png")
    check_device_map(device, device_map)
    if config is not None and model != "demo":
        raise UsageError("--config takes the place of --model: give one of them")
    if visual_tokens is not None and pictures != 1:
        raise UsageError("--visual-tokens says how many all pictures make: leave --pictures out")
    if video is not None and (picture is not None or visual_tokens is not None or pictures != 1):
        raise UsageError(
            "--video says what is shown: leave --picture, --pictures and --visual-tokens out"
        )
    if video is not None and (operators or weights is not w.Weights.auto):
        raise UsageError("--video is counted, not timed: leave --operators and --weights out")
    if not latency and operators:
        raise UsageError("--no-latency runs nothing: leave --operators out")
    if openvino is not None:
        if not latency or video is not None:
            raise UsageError("--openvino is timed: leave --no-latency and --video out")
        if quantization is not None or device_map is not None:
            raise UsageError("--openvino: leave --quantization and --device-map out")
        if shutil.which(openvino) is None:
            raise UsageError(f"--openvino: there is no interpreter {openvino} that can be run")
    if not latency and weights is not w.Weights.auto:
        raise UsageError(f"--no-latency times nothing: leave --weights {weights.value} out")

    from st3.families.meta import meta_model
    from st3.inference import configs, loading, presets
    from st3.inference.checkpoints import HUB_IDS
    from st3.inference.device_map import first_device
    from st3.inference.image_processors import place_of
    from st3.inference.quantization import find_quantization
    from st3.inference.video_processors import has_videos
    from st3.profiling import Workload
    from st3.profiling import profile as measure
    from st3.profiling.openvino import OpenVino
    from st3.profiling.picture import STANDARD, picture_of
    from st3.profiling.placement import places_for
    from st3.profiling.shape import shape_of
    from st3.profiling.subject import choose

    methods = read_settings(settings, methods, DEFAULT_METHODS, given)
    quiet_transformers()
    name = None if config is not None else model
    shown = model if config is None else f"{config.resolve().parent.name}/{config.name}"
    if config is not None:
        found = configs.read_config(config)
    elif model in presets.PRESETS and not (model in HUB_IDS and _trained(model, weights)):
        found = presets.known_config(model)
    else:
        found = configs.find_config(model)
    shape = shape_of(meta_model(found))
    frames, size = video or (0, picture or STANDARD)
    if frames and not has_videos(found):
        aside("note: this family takes no videos: its frames are counted as pictures")
        pictures, frames = frames, 0
    if visual_tokens is None:
        try:
            visual_tokens = pictures * picture_of(found, size, pictures, frames).tokens
        except ValueError as error:
            more = "; or say how many by --visual-tokens, and the tower is left out"
            raise ValueError(f"{error}{more}") from error
    chosen = build_methods(methods, shape.layers, given)
    works = [
        Workload(visual_tokens, text_tokens, new_tokens, batch, size, pictures, frames)
        for batch in batch_size
    ]
    places = None
    if device_map is not None:
        places = places_for(device_map_of(device_map), found)
    where = loading.find_device(device.value) if places is None else first_device(places)
    how = None if quantization is None else find_quantization(quantization.value)
    loading.check_whole(how, places)
    if openvino is not None and where.type != "cpu":
        raise UsageError("--openvino is timed on the CPU: give --device cpu")
    numbers = loading.find_dtype(dtype.value, where, found, how)
    backend = attn_implementation.value if attn_implementation else None
    live, kind, note = None, None, "Latency not measured: --no-latency."
    if video is not None:
        note = "Latency not measured: of a video only MACs and bytes are counted."
        if frames and place_of(found) is None:
            note += " Frames are resized as the family's are; a checkpoint may say otherwise."
    elif latency:
        largest = max(works, key=lambda work: work.batch)
        live, kind, note = choose(
            name, found, largest, weights=weights.value, device=where, dtype=numbers,
            seed=seed, attn_implementation=backend, quantization=how, places=places,
        )  # fmt: skip
        if kind == "pretrained":
            note_set_aside(live)
    peer = None
    if openvino is not None and live is not None:
        peer = OpenVino(openvino, found, numbers, seed=seed)
    compared = len(chosen) + 1 + (peer is not None) + (compile is not o.Compiler.off)
    with (
        peer or nullcontext(),
        run_bar(len(works) * (repeats + 1) * compared, live) as on_run,
    ):
        report = measure(
            shown, found, chosen, works,
            dtype=numbers, quantization=how, device=where, places=places, live=live, weights=kind,
            repeats=repeats, min_seconds=min_seconds,
            cuda_graphs=cuda_graphs, compile=compile.value, openvino=peer,
            watch_operators=operators,
            command=shlex.join(["st3", *sys.argv[1:]]), notes=[note], on_run=on_run,
        )  # fmt: skip
    if json:
        print_json_text(report.json())
    else:
        show(report, detail)
    sys.stdout.flush()
    if output is not None:
        save(output, report)
    if plot is not None:
        from st3.plots.costs import save_profile

        with plainly("write", plot):
            save_profile(plot, report)
    if not json:
        for path in (output, plot):
            if path is not None:
                aside(f"wrote {path}")
    if report.interrupted:
        raise typer.Exit(INTERRUPTED)


def _trained(model: str, weights: w.Weights) -> bool:
    """Whether the checkpoint's own configuration, and so its dtype, is wanted and at hand."""
    from st3.inference import checkpoints

    return weights is w.Weights.pretrained or (
        weights is w.Weights.auto and checkpoints.in_cache(checkpoints.find(model))
    )
