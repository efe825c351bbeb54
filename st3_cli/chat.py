"""`st3 chat [IMAGE]`: a conversation on the terminal, which keeps its trimmed KV cache."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from st3_cli import method_options as m
from st3_cli import options as o
from st3_cli import question as q
from st3_cli.console import quiet_transformers
from st3_cli.errors import UsageError
from st3_cli.method_choice import build_method, read_settings
from st3_cli.models import load_model, note_hub
from st3_cli.talk import Talk

EXAMPLES = o.examples(
    "st3 chat",
    "st3 chat photo.jpg --model qwen2.5-vl-7b --tau 256",
    "printf 'What is this?\\n/image b.jpg\\nAnd this?\\n' | st3 chat a.jpg --model ./model",
)


@m.takes_method_options
def chat(
    image: Annotated[
        str | None,
        typer.Argument(
            help="What comes with the first message, a picture or a video: a path, a URL, or demo "
            "for the bundled picture.",
            metavar="IMAGE", show_default=False, callback=q.utf8,
        ),
    ] = None,
    model: o.ModelOption = "demo",
    method: m.MethodOption = "st3",
    given: m.Given = m.NOTHING,
    settings: m.SettingsOption = None,
    quantization: o.QuantizationOption = None,
    device: o.DeviceOption = o.Device.auto,
    device_map: o.DeviceMapOption = None,
    dtype: o.DtypeOption = o.Dtype.auto,
    attn_implementation: o.AttentionOption = None,
    compile: o.CompileOption = o.Compiler.off,
    frames: q.FramesOption = None,
    fps: q.FpsOption = None,
    seed: o.SeedOption = 0,
    max_new_tokens: Annotated[
        int, o.option(o.MODEL, min=1, help="Most tokens of an answer.", metavar="N")
    ] = 512,
    temperature: Annotated[
        float, o.option(o.MODEL, min=0, help="Of sampling; 0 is greedy.", metavar="X")
    ] = 0.0,
    json: Annotated[
        bool, o.flag(o.OUTPUT, "--json", help="Print a line of JSON for each message.")
    ] = False,
    debug: o.DebugOption = False,
) -> None:  # fmt: skip
    """Talk about pictures; what was said stays in the KV cache, trimmed.

    Without IMAGE the demo model gets the bundled picture, others none. A line is a message; from a
    pipe, too. After each answer a line says what is kept. Exit code 1: a line of a pipe failed.
    """
    q.read_question([] if image is None else [image])
    q.check_frames(frames, fps)
    if image == "-":
        raise UsageError("standard input is where messages come from: give the picture as a file")

    from st3.inference import checkpoints, configs
    from st3.inference.conversation import Conversation

    method = read_settings(settings, method, "st3", given)
    quiet_transformers()
    source = checkpoints.find(model)
    note_hub(model)
    layers = configs.load_config(source).get_text_config().num_hidden_layers
    chosen = build_method(method, layers, given)
    none = image is None and model != "demo"
    first = [] if none else [q.open_visuals([] if image is None else [image], None, None)]
    live, processor = load_model(
        model, device, dtype, attn_implementation, quantization, device_map
    )

    def shown(opened: Any) -> Any:
        total, timed = getattr(opened, "total", 0), getattr(opened, "timed", False)
        most = None if frames is None else min(frames, total)  # of each video, what it has of it
        visual = q.take_frames(opened, processor, most, fps if timed else None)
        q.note_foreign(model, visual)
        return visual

    with Conversation(live, processor, chosen, compile.value) as conversation:
        options = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
        answered = Talk(conversation, shown, [shown(one) for one in first], options, json).run()
    if not answered:
        raise typer.Exit(1)
