"""`st3 attention-map`: where a model looks, how redundant the picture is, which patches survive."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from st3.files import plainly
from st3_cli import method_options as m
from st3_cli import options as o
from st3_cli import question as q
from st3_cli.console import aside, err, print_json, print_table, quiet_transformers
from st3_cli.errors import UsageError
from st3_cli.method_choice import build_method, read_settings
from st3_cli.models import load_model, note_hub
from st3_cli.outputs import check_folder

EXAMPLES = o.examples(
    "st3 attention-map",
    "st3 attention-map photo.jpg 'What is this?' --model 7b",
    "st3 attention-map --compare --layers 1,4,9-12 --heads 1-4 --output look",
)
_PANELS = 8  # layers or heads in the grid, unless others are asked for


@m.takes_method_options
def attention_map(
    asked: q.QuestionArgument = None,
    model: o.ModelOption = "demo",
    method: m.MethodOption = "st3",
    given: m.Given = m.NOTHING,
    settings: m.SettingsOption = None,
    quantization: o.QuantizationOption = None,
    device: o.DeviceOption = o.Device.auto,
    device_map: o.DeviceMapOption = None,
    dtype: o.DtypeOption = o.Dtype.auto,
    attn_implementation: o.AttentionOption = None,
    frames: q.FramesOption = None,
    fps: q.FpsOption = None,
    seed: o.SeedOption = 0,
    new_tokens: Annotated[
        int, o.option(o.MODEL, min=1, help="Most tokens to follow.", metavar="N")
    ] = 32,
    layers: Annotated[
        str | None,
        o.option(
            o.OUTPUT, metavar="LIST", show_default=f"{_PANELS} of them",
            help="Which layers the grid of heads shows, such as 1,4,9-12.",
        ),
    ] = None,
    heads: Annotated[
        str | None,
        o.option(
            o.OUTPUT, metavar="LIST", show_default=f"{_PANELS} of them",
            help="Which heads it shows, such as 1-4.",
        ),
    ] = None,
    compare: Annotated[
        bool,
        o.flag(o.OUTPUT, "--compare", help="The same pictures for an answer with trimming on."),
    ] = False,
    output: Annotated[
        Path, o.option(o.OUTPUT, metavar="FOLDER", help="Where to write.")
    ] = Path("st3-attention"),
    force: Annotated[
        bool,
        o.flag(o.OUTPUT, "--force", help="Write into a folder with files."),
    ] = False,
    json: o.JsonOption = False,
    debug: o.DebugOption = False,
) -> None:  # fmt: skip
    """See where attention goes, how redundant visual tokens are, and which ones survive.

    Writes PNGs, one report.html to mail or print, and attention.json into a folder.
    """
    check_folder("--output", output)
    if output.is_dir() and any(output.iterdir()) and not force:
        raise UsageError(
            f"{output} holds other files: give another --output, or --force to write into it"
        )
    sources, prompt = q.read_question(asked)
    q.check_frames(frames, fps)

    import torch

    from st3 import demo
    from st3.attention.album import EXPLAINED, TABLE, save_album
    from st3.attention.look import analyse, look, sentences
    from st3.inference.configs import find_config

    method = read_settings(settings, method, "st3", given)
    quiet_transformers()
    note_hub(model)
    text = find_config(model).get_text_config()
    chosen = build_method(method, text.num_hidden_layers, given)
    if compare and chosen.name == "none":
        raise UsageError("--compare sets a method against none: give another --method")
    rows = _numbers("--layers", layers, text.num_hidden_layers)
    columns = _numbers("--heads", heads, text.num_attention_heads)
    opened = q.open_visuals(sources, frames, fps)
    live, processor = load_model(
        model, device, dtype, attn_implementation, quantization, device_map
    )
    visual = q.take_frames(opened, processor, frames, fps)
    if frames is None and fps is None:
        visual = q.fit_frames(visual, live, processor, prompt or demo.PROMPT)
    q.note_foreign(model, visual)
    torch.manual_seed(seed)
    seen = look(
        model, live, processor, visual, prompt if prompt is not None else demo.PROMPT, chosen,
        new_tokens=new_tokens, compare=compare,
    )  # fmt: skip
    document = analyse(seen) | q.describe_clip(visual)
    with plainly("write into", output), _drawing() as on_file:
        save_album(output, seen, document, rows, columns, on_file)
    if json:
        print_json(document)
        return
    print_table(
        f"Attention of the last prompt token to the picture: {model}, untrimmed; kept by "
        f"{chosen.name}",
        list(TABLE),
        [[cell(row) for cell in TABLE.values()] for row in document["layers"]],
    )
    for sentence in sentences(document):
        err.print(sentence)
    err.print(EXPLAINED, style="dim")
    aside(f"wrote {len(document['files'])} files; open {output / 'report.html'}")


@contextmanager
def _drawing() -> Iterator[Callable[[str], None]]:
    """Yield who is told which file is drawn, and shows it if stderr is a terminal."""
    if not err.is_terminal:
        yield lambda name: None
        return
    with err.status("drawing") as status:
        yield lambda name: status.update(f"drawing {name}")


def _numbers(option: str, text: str | None, count: int) -> list[int]:
    """1,4,9-12 as numbers; without a text, some that are evenly spread.

    Raises:
        UsageError: no such thing, or numbers that the model does not have.
    """
    if text is None:
        some = min(count, _PANELS)
        return [round(1 + n * (count - 1) / max(some - 1, 1)) for n in range(some)]
    found: list[int] = []
    for part in text.split(","):
        low, dash, high = (piece.strip() for piece in part.partition("-"))
        if not low.isdecimal() or (dash and not high.isdecimal()):
            raise UsageError(f"{option}: {text!r} is no list of numbers: give e.g. 1,4,9-12")
        found += range(int(low), int(high or low) + 1)
    wrong = [number for number in found if not 1 <= number <= count]
    if wrong or not found:
        raise UsageError(
            f"{option}: this model has 1 to {count}, not {wrong[0] if wrong else text!r}"
        )
    return list(dict.fromkeys(found))
