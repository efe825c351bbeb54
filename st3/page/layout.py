"""What is on the page, in gradio: controls and places, that nothing answers yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from st3 import demo
from st3.methods import METHODS
from st3.page.handlers import Page
from st3.page.knobs import knob
from st3.page.view import KNOBS

_SPEC = "A name, or one with its parameters: fastv:k=2,r=50%, divprune:keep=64, visionzip+st3"


@dataclass(frozen=True)
class Layout:
    """The parts of the page; gradio's components.

    Attributes:
        picture, file, prompt, button, stop: what is asked.
        refusal, means, notes: what is said about it.
        method, knobs, tokens, compare: how.
        shown, layer, after, said, took: what comes of it.
        query, link, command: where it can be seen again.
    """

    picture: Any
    file: Any
    prompt: Any
    button: Any
    stop: Any
    refusal: Any
    method: Any
    means: Any
    knobs: dict[str, Any]
    tokens: Any
    compare: Any
    shown: Any
    layer: Any
    after: Any
    said: Any
    notes: Any
    took: Any
    query: Any
    link: Any
    command: Any


def lay_out(page: Page) -> Layout:
    """Put everything where it belongs, inside an open `gr.Blocks`.

    The classes are for phones, where `st3.page.showing.CSS` sets the picture before the question,
    and the answer behind it, before the method's controls.
    """
    start, layers = page.start, page.host.layers
    gr.Markdown(f"# st3: what is left of a picture\n\nModel: `{page.host.name}`")
    with gr.Row(elem_classes="st3-page"):
        with gr.Column(scale=2, min_width=280, elem_classes="st3-side"):
            with gr.Column(elem_classes="st3-ask"):
                picture = gr.Radio([*demo.PICTURES], value=start.picture, label="Picture")
                file = gr.File(label="Or drop one of your own", height=150)
                prompt = gr.Textbox(start.prompt, label="Question", lines=1, max_length=4000)
                with gr.Row():
                    button = gr.Button("Ask", variant="primary", min_width=100)
                    stop = gr.Button("Stop", min_width=100)
                refusal = gr.HTML()
            with gr.Column(elem_classes="st3-how"):
                method = gr.Dropdown(
                    [*METHODS], value=start.method, allow_custom_value=True, label="Method",
                    info=_SPEC,
                )  # fmt: skip
                means = gr.HTML()
                knobs = {name: knob(name, layers) for name in KNOBS}
                tokens = gr.Slider(1, page.limit, start.tokens, step=1, label="Most tokens")
                compare = gr.Checkbox(start.compare, label="Untrimmed as well, to compare")
        with gr.Column(scale=3, min_width=280, elem_classes="st3-side"):
            shown = gr.HTML(elem_classes="st3-see")
            with gr.Column(elem_classes="st3-answer"):
                with gr.Row():
                    layer = gr.Slider(1, layers, page.middle, step=1, label="Layer to look at")
                    after = gr.Slider(0, 1, 0, step=1, label="Generated tokens")
                said, notes, took = gr.HTML(), gr.HTML(), gr.HTML()
                query = gr.Textbox(visible=False)
                link = gr.Textbox(label="Link to this view", buttons=["copy"], interactive=False)
                command = gr.Textbox(
                    label="The same by the command line", buttons=["copy"], interactive=False,
                    lines=2, elem_classes="st3-command",
                )  # fmt: skip
    return Layout(
        picture, file, prompt, button, stop, refusal, method, means, knobs, tokens, compare, shown,
        layer, after, said, notes, took, query, link, command,
    )  # fmt: skip
