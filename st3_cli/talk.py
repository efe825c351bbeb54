"""The loop of `st3 chat`: lines are read and answered; what goes wrong with one costs no other."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from st3_cli import question as q
from st3_cli.console import aside, err, print_answer, print_json_text, say
from st3_cli.errors import explain

if TYPE_CHECKING:
    from st3.inference.conversation import Conversation
    from st3.inference.generation import Answer

_HELP = """/image PATH   a picture or a video (path or URL) that comes with your next message
/drop         show nothing with it after all
/forget       begin anew
/help         this
/quit         leave, as Ctrl-D does; Ctrl-C stops an answer"""
_LONGEST = 300  # characters of a line that says what is wrong


class Talk:
    """Reads lines and answers them.

    Args:
        conversation: to go on with.
        shown: what is opened -> what the model is shown.
        first: comes with the first message, unless the user shows something else before.
        options: of every turn.
        as_json: print a line of JSON for each line that is no command.
    """

    def __init__(
        self,
        conversation: Conversation,
        shown: Callable[[Any], Any],
        first: list[Any],
        options: dict[str, Any],
        as_json: bool,
    ) -> None:
        """Nothing is read yet."""
        self.conversation, self.shown = conversation, shown
        self.first: list[Any] = first
        self.pictures: list[Any] = []
        self.options, self.json = options, as_json
        self.live = sys.stdin is not None and sys.stdin.isatty()
        self.turns = self.failed = 0

    def run(self) -> bool:
        """Until there is nothing more to read; whether every line of a pipe was answered."""
        if self.live:
            import readline  # noqa: F401 - input() then edits lines, and remembers them

            aside("a line is a message; /help lists what else there is, Ctrl-D leaves")
            if self.first:
                aside("the picture comes with your first message")
        elif hasattr(sys.stdin, "reconfigure"):
            sys.stdin.reconfigure(errors="surrogateescape")  # refused below, and not in the middle
        while (line := self._read()) is not None:
            text = line.strip()
            if text in ("/quit", "/exit", "/bye"):
                break
            try:
                self._take(text)
            except BrokenPipeError:
                raise
            except KeyboardInterrupt:
                print_answer("\n" * (not self.json))
                self._went_wrong(text, "stopped")
            except Exception as error:
                self._went_wrong(text, explain(error)[0])
        if not (self.live or self.turns or self.failed):
            aside("no message came: a line of standard input is one")
        return self.live or not self.failed

    def _read(self) -> str | None:
        """The next line, None at the end."""
        if not self.live:
            return (sys.stdin.readline() if sys.stdin is not None else "") or None
        while True:
            try:
                with _handling(signal.default_int_handler):
                    if sys.stdout.isatty():
                        return input("> ")
                    err.print("> ", end="")  # answers go elsewhere
                    return sys.stdin.readline() or None
            except EOFError:
                print_answer("\n")
                return None
            except KeyboardInterrupt:
                err.print()
                aside("Ctrl-D or /quit leaves")

    def _take(self, text: str) -> None:
        try:
            text.encode()
        except UnicodeError:
            raise ValueError("this line has bytes that are no UTF-8") from None
        if text.startswith("/"):
            with _handling(signal.default_int_handler):
                self._command(*text[1:].split(maxsplit=1))
        elif text or not self.live:
            self._ask(text)

    def _went_wrong(self, text: str, why: str) -> None:
        """Say it; what was to be shown with a message that failed is shown no more."""
        why = why if len(why) <= _LONGEST else f"{why[:_LONGEST]}..."
        say(why)
        self.failed += 1
        if self.json:
            self._print({"line": text.encode(errors="replace").decode(), "error": why})
        if not text or text.startswith("/"):
            return
        if self.pictures or self.first:
            self.pictures, self.first = [], []
            aside("what was to be shown with it is dropped: /image shows it again")
        if self.turns and not self.conversation.tokens:
            aside("what was said before is lost: this begins anew")
            self.turns = 0

    def _command(self, name: str = "", argument: str = "") -> None:
        name = name.lower()
        if name == "image" and argument:
            self._show(_path(argument.strip()))
        elif name == "image":
            raise ValueError("/image needs a path or a URL")
        elif name == "drop":
            self.pictures, self.first = [], []
            aside("nothing comes with your next message")
        elif name == "forget":
            self.conversation.forget()
            self.pictures, self.first, self.turns = [], [], 0
            aside("begun anew")
        elif name == "help":
            for line in _HELP.splitlines():
                aside(line)
        else:
            raise ValueError(f"there is no /{name}; /help lists what there is")

    def _show(self, source: str) -> None:
        if source == "-":
            raise ValueError("standard input is where messages come from: give a file or a URL")
        visual = self.shown(q.open_visuals([source], None, None))
        if self.pictures and (_moves(visual) or _moves(self.pictures[0])):
            raise ValueError("a video comes alone: send your message first, or /drop what is there")
        self.first = []
        self.pictures.append(visual)
        aside(f"{_size(visual)}; it comes with your next message")

    def _ask(self, text: str) -> None:
        stopped = False

        def stop(number: int, frame: Any) -> None:
            nonlocal stopped
            if stopped:  # it does not listen
                raise KeyboardInterrupt
            stopped = True
            aside("stopping; Ctrl-C once more gives this turn up")

        pictures = self.pictures or self.first
        visual = pictures[0] if len(pictures) == 1 else pictures
        with _handling(stop):
            answer = self.conversation.ask(
                text, visual, **self.options,
                on_text=None if self.json else print_answer, stop=lambda: stopped,
            )  # fmt: skip
        self.pictures, self.first = [], []
        self.turns += 1
        self._tell(text, visual, answer, stopped)

    def _tell(self, text: str, visual: Any, answer: Answer, stopped: bool) -> None:
        from st3.inference.report import describe_turn, turn_summary

        end = "stopped" if stopped else "ended" if answer.ended else "cut"
        if self.json:
            told = describe_turn(answer, self.turns) | {"end": end} | q.describe_clip(visual)
            self._print({"prompt": text} | told)
            return
        print_answer("\n")
        how = {"stopped": " · stopped", "cut": " · cut: no more tokens were allowed", "ended": ""}
        aside(turn_summary(answer) + how[end])

    def _print(self, document: dict[str, Any]) -> None:
        print_json_text(json.dumps(document, ensure_ascii=False) + "\n")
        sys.stdout.flush()


def _path(text: str) -> str:
    """A path as it was typed, or as a terminal quotes one that is dropped on it."""
    if Path(text).exists():
        return text
    try:
        parts = shlex.split(text)
    except ValueError:
        return text
    return parts[0] if len(parts) == 1 else text


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
