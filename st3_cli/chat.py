"""`st3 chat [IMAGE]`: a conversation on the terminal, which keeps its trimmed KV cache."""

from __future__ import annotations

import json as json_
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from st3_cli import method_options as m
from st3_cli import options as o
from st3_cli import question as q
from st3_cli.console import aside, print_answer, print_json_text, quiet_transformers, say
from st3_cli.ctrl_c import ctrl_c
from st3_cli.errors import UsageError, explain
from st3_cli.method_choice import build_method, read_settings
from st3_cli.models import load_model, note_hub

if TYPE_CHECKING:
    from st3.inference.conversation import Conversation

EXAMPLES = o.examples(
    "st3 chat",
    "st3 chat photo.jpg --model qwen2.5-vl-7b --tau 256",
    "printf 'What is this?\\n/image b.jpg\\nAnd this?\\n' | st3 chat a.jpg --model ./model",
)
_HELP = """/image PATH   a picture or a video (path or URL) that comes with your next message
/forget       begin anew
/help         this
/quit         leave, as Ctrl-D does; Ctrl-C stops an answer"""


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
    device: o.DeviceOption = o.Device.auto,
    dtype: o.DtypeOption = o.Dtype.auto,
    attn_implementation: o.AttentionOption = None,
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
        bool, o.flag(o.OUTPUT, "--json", help="Print a line of JSON for each answer.")
    ] = False,
    debug: o.DebugOption = False,
) -> None:  # fmt: skip
    """Talk about pictures; what was said stays in the KV cache, trimmed.

    Without IMAGE the demo model gets the bundled picture, others none. A line is a message; from a
    pipe, too. After each answer a line says what is kept.
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
    live, processor = load_model(model, device, dtype, attn_implementation)

    def shown(opened: Any) -> Any:
        visual = q.take_frames(opened, processor, frames, fps)
        q.note_foreign(model, visual)
        return visual

    with Conversation(live, processor, chosen) as conversation:
        options = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
        _Chat(conversation, shown, [shown(one) for one in first], options, json).run()


class _Chat:
    """Reads lines and answers them."""

    def __init__(
        self, conversation: Conversation, shown: Callable[[Any], Any], pictures: list[Any],
        options: dict[str, Any], json: bool,
    ) -> None:  # fmt: skip
        self.conversation, self.shown, self.pictures = conversation, shown, pictures
        self.options, self.json = options, json
        self.live = sys.stdin is not None and sys.stdin.isatty()
        self.turns = 0

    def run(self) -> None:
        """Until there is nothing more to read."""
        if self.live:
            import readline  # noqa: F401 - input() then edits lines, and remembers them

            aside("a line is a message; /help lists what else there is, Ctrl-D leaves")
            if self.pictures:
                aside("the picture comes with your first message")
        while (line := self._read()) is not None:
            text = line.strip()
            try:
                if text in ("/quit", "/exit", "/bye"):
                    return
                if text.startswith("/"):
                    self._command(*text[1:].split(maxsplit=1))
                elif text or not self.live:
                    self._ask(text)
            except Exception as error:  # the conversation lives on
                say(explain(error)[0])
                if self.turns and not self.conversation.tokens:
                    aside("what was said before is lost: this begins anew")
                    self.turns = 0

    def _read(self) -> str | None:
        """The next line, None at the end."""
        if not self.live:
            line = sys.stdin.readline() if sys.stdin is not None else ""
            return line or None
        while True:
            try:
                with _handling(signal.default_int_handler):
                    return input("> ")
            except EOFError:
                print_answer("\n")
                return None
            except KeyboardInterrupt:
                print_answer("\n")
                aside("Ctrl-D or /quit leaves")

    def _command(self, name: str = "", argument: str = "") -> None:
        if name == "image" and argument:
            visual = self.shown(q.open_visuals([argument.strip()], None, None))
            if self.pictures and (_moves(visual) or _moves(self.pictures[0])):
                raise ValueError("a video comes alone: send the message, and then show another")
            self.pictures.append(visual)
            aside(f"{_size(visual)}; it comes with your next message")
        elif name == "image":
            say("/image needs a path or a URL")
        elif name == "forget":
            self.conversation.forget()
            self.pictures, self.turns = [], 0
            aside("begun anew")
        elif name == "help":
            for line in _HELP.splitlines():
                aside(line)
        else:
            say(f"there is no /{name}; /help lists what there is")

    def _ask(self, text: str) -> None:
        from st3.inference.report import describe_turn, turn_summary

        stopped = False

        def stop(number: int, frame: Any) -> None:
            nonlocal stopped
            if stopped:  # it does not listen
                ctrl_c(number, frame)
            stopped = True

        with _handling(stop):
            answer = self.conversation.ask(
                text, self.pictures[0] if len(self.pictures) == 1 else self.pictures,
                **self.options,
                on_text=None if self.json else print_answer, stop=lambda: stopped,
            )  # fmt: skip
        self.pictures = []
        self.turns += 1
        if self.json:
            told = {"prompt": text} | describe_turn(answer, self.turns)
            print_json_text(json_.dumps(told, ensure_ascii=False) + "\n")
            sys.stdout.flush()
            return
        print_answer("\n")
        aside(turn_summary(answer) + (" · stopped" if stopped else ""))


def _moves(visual: Any) -> bool:
    return hasattr(visual, "frames")


def _size(visual: Any) -> str:
    width, height = (visual.frames[0] if _moves(visual) else visual).size
    many = f"{len(visual.frames)} frames of " if _moves(visual) else ""
    return f"{many}{width} x {height} pixels"


@contextmanager
def _handling(handler: Callable[[int, Any], Any]) -> Iterator[None]:
    """Ctrl-C goes there meanwhile, unless whoever started us wants it ignored."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
