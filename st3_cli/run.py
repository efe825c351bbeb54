"""`st3 run IMAGE... PROMPT`: ask about pictures or a video, trimmed; the answer streams."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from st3.files import plainly
from st3_cli import method_options as m
from st3_cli import options as o
from st3_cli import question as q
from st3_cli.console import (
    aside,
    leave_talking,
    print_answer,
    print_json,
    print_texts,
    quiet_transformers,
)
from st3_cli.errors import UsageError
from st3_cli.method_choice import build_method, read_settings
from st3_cli.models import load_model, note_hub
from st3_cli.outputs import check_output

if TYPE_CHECKING:
    from st3.inference.generation import Answer

RANK = int(os.environ.get("RANK", "0"))  # of this process, where torchrun started several
EXAMPLES = o.examples(
    "st3 run",
    "st3 run demo 'Is there a purple square?' --compare --show-kept kept.png",
    "st3 run photo.jpg 'What do you see?' --model 7b",
    "st3 run before.jpg after.jpg 'What differs?' --model 7b",
    "st3 run clip.mp4 'What happens?' --model 7b --frames 6",
)


@m.takes_method_options
def run(
    asked: q.QuestionArgument = None,
    model: o.ModelOption = "demo",
    method: m.MethodOption = "st3",
    given: m.Given = m.NOTHING,
    settings: m.SettingsOption = None,
    quantization: o.QuantizationOption = None,
    device: o.DeviceOption = o.Device.auto,
    device_map: o.DeviceMapOption = None,
    tensor_parallel: o.TensorParallelOption = False,
    dtype: o.DtypeOption = o.Dtype.auto,
    attn_implementation: o.AttentionOption = None,
    cuda_graphs: o.CudaGraphsOption = False,
    compile: o.CompileOption = o.Compiler.off,
    frames: q.FramesOption = None,
    fps: q.FpsOption = None,
    seed: o.SeedOption = 0,
    max_new_tokens: Annotated[
        int, o.option(o.MODEL, min=1, help="Most tokens to generate.", metavar="N")
    ] = 128,
    temperature: Annotated[
        float, o.option(o.MODEL, min=0, help="Of sampling; 0 is greedy.", metavar="X")
    ] = 0.0,
    compare: Annotated[
        bool, o.flag(o.OUTPUT, "--compare", help="Also run it untrimmed.")
    ] = False,
    show_kept: Annotated[
        Path | None,
        o.option(
            o.OUTPUT, metavar="FILE.png",
            help="Draw the patches that survive, one panel a group of layers.",
        ),
    ] = None,
    force: Annotated[
        bool, o.flag(o.OUTPUT, "--force", help="Overwrite FILE.png.")
    ] = False,
    json: o.JsonOption = False,
    debug: o.DebugOption = False,
) -> None:  # fmt: skip
    """Ask about pictures or a video; the answer streams, and one line says what it took."""
    if tensor_parallel and RANK:
        leave_talking(RANK)
    check_output("--show-kept", show_kept, force, ".png")
    if force and show_kept is None:
        raise UsageError("--force goes with --show-kept FILE.png")
    sources, prompt = q.read_question(asked)
    if tensor_parallel and "-" in sources:
        raise UsageError("--tensor-parallel: processes cannot share standard input: give a path")
    q.check_frames(frames, fps)
    if compare and method == "none":
        raise UsageError("--compare sets a method against none: give another --method")

    from st3 import demo
    from st3.inference import checkpoints, configs, generation, report
    from st3.methods import make_method

    method = read_settings(settings, method, "st3", given)
    quiet_transformers()
    source = checkpoints.find(model)
    note_hub(model)
    layers = configs.load_config(source).get_text_config().num_hidden_layers
    chosen = build_method(method, layers, given)
    opened = q.open_visuals(sources, frames, fps)
    question = prompt if prompt is not None else demo.PROMPT
    live, processor = load_model(
        model,
        device,
        dtype,
        attn_implementation,
        quantization,
        device_map,
        tensor_parallel=tensor_parallel,
    )
    visual = q.take_frames(opened, processor, frames, fps)
    if frames is None and fps is None:
        visual = q.fit_frames(visual, live, processor, question)
    q.note_foreign(model, visual)

    if show_kept is not None:  # before an answer is made: it may be refused
        places = generation.find_places(live, processor, visual, question)

    def ask(how: Any, tokens: int = max_new_tokens, on_text: Any = None) -> Answer:
        return generation.answer(
            live, processor, visual, question, how,
            max_new_tokens=tokens, temperature=temperature, seed=seed, cuda_graphs=cuda_graphs,
            compile=compile.value, on_text=on_text,
        )  # fmt: skip

    untrimmed = make_method("none")
    if compare:  # both are timed warm
        ask(chosen, 2)
        ask(untrimmed, 2)
    if not json and not sources:
        aside(f"picture: {demo.PICTURE.name} (bundled)   prompt: {question}")
    answer = ask(chosen, on_text=None if json else print_answer)
    baseline = ask(untrimmed) if compare else None
    if not json and tensor_parallel:
        aside("note: bytes of the KV cache are those of the heads of one process")
    if json:
        document = report.describe(answer, model, live, prompt=question)
        document |= q.describe_clip(visual)
        if baseline is not None:
            document["untrimmed"] = report.describe(baseline, model, live, prompt=question)
            document["same_answer"] = baseline.text == answer.text
        print_json(document)
    else:
        print_answer("\n")
        if baseline is None:
            aside(report.summary(answer))
            if more := report.more_than_stock(answer):
                aside(more)
            assert answer.session is not None
            for note in answer.session.record.notes:
                aside(f"{answer.session.method.name}: {note}")
        else:
            _print_comparison(answer, baseline)
    if show_kept is not None and not (tensor_parallel and RANK):
        from st3.plots.kept import save_kept

        assert answer.session is not None
        with plainly("write", show_kept):
            save_kept(show_kept, places, answer.session, model)
        if not json:
            aside(f"wrote {show_kept}")


def _print_comparison(answer: Answer, baseline: Answer) -> None:
    from st3.inference import report

    assert answer.session is not None
    heads = ("", answer.session.method.name, "untrimmed")
    rows = report.compare(answer, baseline)
    print_texts(("One warm run each; st3 profile measures", heads, rows))
