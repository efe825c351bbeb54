"""One boundary for everything that goes wrong: one line on stderr, and the exit code.

0 done, 2 wrong usage, 1 anything else, 130 interrupted. A traceback only with --debug.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

from rich.text import Text

from st3_cli.console import err

INTERRUPTED = 130
"""Exit code after Ctrl-C, as Typer has it."""


class UsageError(Exception):
    """What was asked for makes no sense; the message says how to ask."""


def guard(command: Callable[[], int | None]) -> int:
    """Run `command` and turn whatever it raises into a line and an exit code."""
    try:
        code = command() or 0
        if code == INTERRUPTED:
            _say("interrupted")
        return code
    except BrokenPipeError:
        # Whoever read our output has seen enough; keep the interpreter from flushing into it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        message, code = explain(error)
        if message:
            _say(message)
        return code


def explain(error: Exception) -> tuple[str, int]:
    """A line that says what is wrong and how to mend it, and the exit code."""
    if isinstance(error, UsageError):
        return str(error), 2
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # Typer's own
        message = _line(error.format_message()).replace("Value error, ", "")
        path = getattr(getattr(error, "ctx", None), "command_path", "st3")
        # `st3` alone has printed its help by now, and has nothing to say.
        return f"{message} (see {path} --help)" if message else "", int(error.exit_code)
    from st3.inference.pictures import PictureError

    if isinstance(error, PictureError):
        return _line(str(error)), 1
    memory = _out_of_memory(error)
    if memory:
        return memory, 1
    if type(error).__name__ == "SafetensorError":
        return f"the checkpoint's weights are damaged, fetch them again: {_line(str(error))}", 1
    if isinstance(error, ImportError) and "Flash" in str(error):
        return f"{_line(str(error))} Or use --attn-implementation sdpa.", 1
    if isinstance(error, (ValueError, RuntimeError, OSError, ImportError)) and str(error):
        return _line(str(error)), 1
    return f"{type(error).__name__}: {_line(str(error))} (--debug shows where)", 1


def _out_of_memory(error: Exception) -> str | None:
    text = str(error)
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        return "out of memory: use a smaller model or --dtype bfloat16, or lower --max-new-tokens"
    return None


def _line(text: str) -> str:
    return " ".join(text.split())


def _say(message: str) -> None:
    err.print(Text.assemble(("st3: ", "bold red"), message), soft_wrap=True)
