"""What the page answers: one method for whatever a visitor does, from controls to controls."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from st3 import demo
from st3.demo.likeness import of_this_world
from st3.inference.pictures import decode_picture
from st3.inference.sources import PictureError, read_source
from st3.page import showing
from st3.page.asking import Host, Seen
from st3.page.knobs import position
from st3.page.view import KNOBS, OWN, View, knobs_of, read_method, turned

_WORDS = 0.25  # seconds between what is shown of an answer that grows
_FRAME = 0.5  # and between its pictures: a model on the same cores waits for whoever draws


class Page:
    """The handlers, and what they have in common.

    Args:
        host: has the model.
        start: what is shown to whoever opens the page without a link's query.
        trusted: see `read_method`.
        more: options of the model, for the command to copy.
        limit: of the tokens of an answer.
    """

    def __init__(
        self, host: Host, start: View, *, trusted: Sequence[str] = (), more: Sequence[str] = (),
        limit: int = 512,
    ) -> None:  # fmt: skip
        self.host, self.start, self.trusted = host, start, trusted
        self.more, self.limit = more, limit
        self.middle = max(1, host.layers // 2)

    def view(self, values: Sequence[Any], ask: bool) -> View:
        """What the controls say, in their order."""
        picture, prompt, method, tokens, compare, layer, after = values
        return View(
            picture, prompt or "", str(method or "").strip(), int(tokens), bool(compare),
            0 if layer == self.middle else int(layer), int(after) if ask else -1, ask,
        )  # fmt: skip

    def upload(self, path: str | None) -> tuple[Any, ...]:
        """A file of the visitor's becomes the picture, and is no file any more."""
        if path is None:
            return gr.skip(), gr.skip(), gr.skip(), ""
        name = Path(path).name
        try:
            data, _ = read_source(Path(path))
            shown = showing.preview(decode_picture(data, name), name)
        except PictureError as error:
            return gr.skip(), gr.skip(), gr.skip(), showing.refusal(str(error).replace(path, name))
        finally:
            Path(path).unlink(missing_ok=True)
        radio = gr.Radio(choices=[*demo.PICTURES, OWN], value=OWN)
        return (name, data), radio, shown, ""

    def picture(self, name: str, own: tuple[str, bytes] | None) -> Image.Image:
        """The picture of a view.

        Raises:
            ValueError: the visitor's own, and none has come.
        """
        if name != OWN:
            return decode_picture(demo.PICTURES[name].read_bytes(), name)
        if own is None:
            raise PictureError("this view is of a picture that no link carries: drop it here again")
        return decode_picture(own[1], own[0])

    def pick(self, name: str, own: tuple[str, bytes] | None) -> tuple[str, str]:
        """What is shown before anything is asked."""
        try:
            return showing.preview(self.picture(name, own), name), ""
        except ValueError as error:
            return "", showing.refusal(str(error))

    def settle(self, method: str) -> tuple[Any, ...]:
        """A spec was written: what it means or why it cannot be, and the knobs as it says."""
        spec = str(method or "").strip()
        layers = self.host.layers
        try:
            chosen = read_method(spec, layers, self.trusted)
            schedule, knobs = self.host.schedule(chosen), knobs_of(chosen, layers)
        except ValueError as error:
            return (spec, showing.refusal(str(error)), *[gr.skip()] * len(KNOBS))
        controls = [
            gr.update(visible=name in knobs, **position(name, knobs.get(name))) for name in KNOBS
        ]
        return (spec, showing.note([showing.keeps(schedule)]), *controls)

    def turn(self, name: str, method: str, value: Any) -> tuple[Any, ...]:
        """A knob was turned: the spec says so."""
        try:
            spec = turned(str(method or "").strip(), name, value, self.host.layers)
        except ValueError as error:
            return (gr.skip(), showing.refusal(str(error)), *[gr.skip()] * len(KNOBS))
        spec, means, *controls = self.settle(spec)
        controls[KNOBS.index(name)] = gr.skip()  # it stays where the hand has it
        return (spec, means, *controls)

    def ask(self, own: Any, *values: Any) -> Iterator[tuple[Any, ...]]:
        """The answer as it comes: refusal, notes, answers, pictures, table, film, slider."""
        view, still = self.view(values, True), gr.skip()
        try:
            method = read_method(view.method, self.host.layers, self.trusted)
            if not view.prompt.strip():
                raise ValueError("the prompt is empty: ask something, e.g. 'What do you see?'")
            picture = self.picture(view.picture, own)
        except ValueError as error:
            yield showing.refusal(str(error)), *[still] * 6
            return
        notes = []
        if self.host.name == "demo" and not of_this_world(picture):
            notes = [
                "This picture does not look like the demo model's world, coloured shapes on a pale "
                "ground: what it says is a guess. Real pictures are for --model 7b."
            ]
        yield (
            "",
            showing.note(notes),
            showing.answers("", "", False, view.compare),
            still,
            "",
            *([still] * 2),
        )
        layer, said, drawn, seen = view.layer or self.middle, 0.0, 0.0, Seen()
        tokens = min(view.tokens, self.limit)
        for seen in self.host.ask(picture, view.prompt, method, tokens, view.compare):
            now = time.monotonic()
            if not any(seen.text.values()) or now - said < _WORDS:
                continue
            shown = still
            if said and now - drawn >= _FRAME and (film := seen.now()):  # the first words are alone
                shown, drawn = showing.drawn(film, layer, seen.generated), now
            said = now
            yield still, still, _answers(seen, False, view.compare), shown, still, still, still
        after = seen.generated if view.after < 0 else min(view.after, seen.generated)
        whole = not seen.refusal
        yield (
            showing.refusal(seen.refusal),
            showing.note([*notes, *seen.notes]),
            _answers(seen, whole, view.compare),
            showing.drawn(seen.film, layer, after) if seen.film else still,
            showing.table(self.host.rows(seen)),
            seen.film,
            gr.update(maximum=max(1, seen.generated), value=after, visible=seen.film is not None),
        )

    def address(self, ask: bool, asked: bool, own: Any, *values: Any) -> tuple[str, str]:
        """The view's query and command; what a link has asked is asked."""
        view = self.view(values, ask or asked)
        name = own[0] if own is not None else "PICTURE"
        return view.query(self.start), view.command(self.host.name, name, self.more)

    def open(self, request: gr.Request) -> tuple[Any, ...]:
        """Somebody opens the page, perhaps by a link."""
        query: Mapping[str, str] = dict(request.query_params)
        wrong = ""
        try:
            view = View.of(query, self.start)
        except ValueError as error:
            view, wrong = self.start, str(error)
        shown, refusal = self.pick(view.picture, None)
        choices = [*demo.PICTURES, *[OWN] * (view.picture == OWN)]
        layer = min(max(view.layer, 0), self.host.layers) or self.middle
        return (
            gr.Radio(choices=choices, value=view.picture), view.prompt, view.method,
            min(max(view.tokens, 1), self.limit), view.compare, layer,
            gr.update(value=max(view.after, 0) if view.ask else 0, maximum=max(1, view.after)),
            shown, showing.refusal(wrong) or refusal, view.ask and not (wrong or refusal),
            view.after,
        )  # fmt: skip

    def resume(self, asked: bool, after: int, own: Any, *values: Any) -> Iterator[tuple[Any, ...]]:
        """What a link asks for is asked at once."""
        if asked:
            yield from self.ask(own, *values[:-1], after)
        else:
            yield (gr.skip(),) * 7

    def redraw(self, film: Any, layer: int, after: int) -> Any:
        """One of the two sliders was moved."""
        return showing.drawn(film, int(layer), int(after)) if film is not None else gr.skip()


def _answers(seen: Seen, whole: bool, compared: bool) -> str:
    return showing.answers(seen.text["trimmed"], seen.text["untrimmed"], whole, compared)


def start_of(method: str, limit: int) -> View:
    """What the page opens with."""
    return dataclasses.replace(View(), method=method, tokens=min(View().tokens, limit))
