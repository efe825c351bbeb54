"""`st3 run IMAGE PROMPT`: ask about a picture, trimmed; the answer streams."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from st3_cli import options as o
from st3_cli.console import aside, err, out, print_answer, print_json, quiet_transformers
from st3_cli.errors import UsageError
from st3_cli.models import load_model
from st3_cli.outputs import check_output

if TYPE_CHECKING:
    from st3.inference.generation import Answer

EXAMPLES = (
    "Examples:  st3 run  |  st3 run photo.jpg 'What do you see?' --model 7b  |  "
    "st3 run photo.jpg 'How many?' --compare --show-kept kept.png"
)


@o.takes_method_options
def run(
    image: o.ImageArgument = None,
    prompt: o.PromptArgument = None,
    model: o.ModelOption = "demo",
    method: o.MethodOption = "st3",
    given: o.Given = o.NOTHING,
    settings: o.SettingsOption = None,
    device: o.DeviceOption = o.Device.auto,
    dtype: o.DtypeOption = o.Dtype.auto,
    attn_implementation: o.AttentionOption = None,
    cuda_graphs: o.CudaGraphsOption = False,
    seed: o.SeedOption = 0,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Most tokens to generate.", rich_help_panel=o.MODEL)
    ] = 128,
    temperature: Annotated[
        float, typer.Option(min=0, help="Of sampling; 0 is greedy.", rich_help_panel=o.MODEL)
    ] = 0.0,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also run it untrimmed.", rich_help_panel=o.OUTPUT)
    ] = False,
    show_kept: Annotated[
        Path | None,
        typer.Option(
            help="Draw the patches that survive, one panel a group of layers.",
            metavar="FILE.png", rich_help_panel=o.OUTPUT,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite FILE.png.", rich_help_panel=o.OUTPUT)
    ] = False,
    json: o.JsonOption = False,
    debug: o.DebugOption = False,
) -> None:  # fmt: skip
    """Ask about a picture; the answer streams, and one line says what it took."""
    check_output("--show-kept", show_kept, force, ".png")
    if force and show_kept is None:
        raise UsageError("--force goes with --show-kept FILE.png")
    o.check_question(image, prompt)
    if compare and method == "none":
        raise UsageError("--compare sets a method against none: give another --method")

    from st3 import demo
    from st3.inference import checkpoints, configs, generation, report
    from st3.inference.pictures import open_picture
    from st3.methods import make_method

    method = o.read_settings(
        settings, method, "st3", given,
    )  # fmt: skip
    quiet_transformers()
    source = checkpoints.find(model)
    if err.is_terminal and not source.is_folder:
        aside(f"model: {source.place}, from the Hub or its cache")
    layers = configs.load_config(source).get_text_config().num_hidden_layers
    chosen = o.build_method(
        method, layers, given,
    )  # fmt: skip
    picture = open_picture(image if image is not None else demo.PICTURE)
    question = prompt if prompt is not None else demo.PROMPT
    live, processor = load_model(
        model, device.value, dtype.value,
        attn_implementation.value if attn_implementation else None,
    )  # fmt: skip

    def ask(how: Any, tokens: int = max_new_tokens, on_text: Any = None) -> Answer:
        return generation.answer(
            live, processor, picture, question, how,
            max_new_tokens=tokens, temperature=temperature, seed=seed, cuda_graphs=cuda_graphs,
            on_text=on_text,
        )  # fmt: skip

    untrimmed = make_method("none")
    if compare:  # both are timed warm
        ask(chosen, 2)
        ask(untrimmed, 2)
    if not json and image is None:
        aside(f"picture: {demo.PICTURE.name} (bundled)   prompt: {question}")
    answer = ask(chosen, on_text=None if json else print_answer)
    baseline = ask(untrimmed) if compare else None
    if json:
        document = report.describe(answer, model, live, prompt=question)
        if baseline is not None:
            document["untrimmed"] = report.describe(baseline, model, live, prompt=question)
            document["same_answer"] = baseline.text == answer.text
        print_json(document)
    else:
        print_answer("\n")
        if baseline is None:
            aside(report.summary(answer))
        else:
            _print_comparison(answer, baseline)
    if show_kept is not None:
        from st3.families.patches import patches_of
        from st3.plots.kept import save_kept

        assert answer.session is not None
        pixels = processor.image_processor(picture, return_tensors="pt")["pixel_values"]
        patches = patches_of(live, processor, pixels, answer.session.visual_tokens[0])
        try:
            save_kept(show_kept, patches, answer.session, model)
        except OSError as error:
            raise ValueError(f"cannot write {show_kept}: {error.strerror}") from error
        if not json:
            aside(f"wrote {show_kept}")


def _print_comparison(answer: Answer, baseline: Answer) -> None:
    from st3.inference import report

    assert answer.session is not None
    table = Table(title="Timed warm, one run each", title_justify="left", title_style="dim")
    table.add_column("")
    table.add_column(answer.session.method.name)
    table.add_column("untrimmed")
    for label, ours, theirs in report.compare(answer, baseline):
        table.add_row(label, ours, theirs)
    out.print(table)
