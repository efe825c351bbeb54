"""The page itself: which handler answers which control, and which of them take turns."""

from __future__ import annotations

from functools import partial
from typing import Any

import gradio as gr

from st3.page.handlers import Page
from st3.page.layout import Layout, lay_out

_ADDRESS = """(query) => {
  const theme = new URL(location).searchParams.get("__theme");
  if (theme) query += (query ? "&" : "") + "__theme=" + encodeURIComponent(theme);
  history.replaceState(null, "", location.pathname + (query ? "?" + query : ""));
  return location.href;
}"""


def build(page: Page) -> gr.Blocks:
    """Everything on it, with its handlers."""
    with gr.Blocks(title="st3", analytics_enabled=False) as blocks:
        _wire(blocks, page, lay_out(page))
    return blocks


def _wire(blocks: gr.Blocks, page: Page, on: Layout) -> None:
    own, film, asked = gr.State(None), gr.State(None, time_to_live=3600), gr.State(False)
    until = gr.State(-1)
    values = [on.picture, on.prompt, on.method, on.tokens, on.compare, on.layer, on.after]
    answer = [on.refusal, on.notes, on.said, on.shown, on.took, film, on.after]
    settled = [on.method, on.means, *on.knobs.values()]
    quick: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    quick |= {"concurrency_limit": None}
    one: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal"}
    one |= {"concurrency_limit": 1, "concurrency_id": "model"}

    def tell(event: Any, ask: bool) -> None:
        found = event.then(
            partial(page.address, ask), [asked, own, *values], [on.query, on.command], **quick
        )
        found.then(None, [on.query], [on.link], js=_ADDRESS, **quick)

    opened = blocks.load(
        page.open, None, [*values, on.shown, on.refusal, asked, until], **quick
    ).then(page.settle, [on.method], settled, **quick)
    resumed = opened.then(page.resume, [asked, until, own, *values], answer, **one)
    tell(resumed, False)
    for event in (
        on.file.upload(page.upload, [on.file], [own, on.picture, on.shown, on.refusal], **quick),
        on.picture.input(page.pick, [on.picture, own], [on.shown, on.refusal], **quick),
        on.method.input(page.settle, [on.method], settled, **quick),
        on.prompt.blur(None, None, None, **quick),
        on.tokens.input(None, None, None, trigger_mode="always_last", **quick),
        on.compare.input(None, None, None, **quick),
    ):
        tell(event, False)
    turns = [on.method.input, *(control.input for control in on.knobs.values())]
    gr.on(turns, lambda: "", None, [on.refusal], **quick)  # it was about what stood there before
    for name, control in on.knobs.items():
        tell(
            control.input(
                partial(page.turn, name), [on.method, control], settled,
                trigger_mode="always_last", **quick,
            ),
            False,
        )  # fmt: skip
    asking = gr.on(
        [on.button.click, on.prompt.submit],
        lambda *given: (yield from page.ask(given[0], *given[1:-1], -1)),
        [own, *values], answer, **one,
    )  # fmt: skip
    tell(asking, True)
    on.stop.click(None, None, None, cancels=[asking, resumed], **quick)
    for slider in (on.layer, on.after):
        moved = slider.input(
            page.redraw, [film, on.layer, on.after], [on.shown], trigger_mode="always_last", **quick
        )
        tell(moved, True)
