"""One boundary for everything that goes wrong: one line on stderr, and the exit code.

0 done, 2 wrong usage, 1 anything else, 130 interrupted. A traceback only with --debug.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable

from st3_cli.console import say
from st3_cli.ctrl_c import INTERRUPTED, ctrl_c
from st3_cli.printable import printable
from st3_cli.streams import discard_stdout


class UsageError(Exception):
    """What was asked for makes no sense; the message says how to ask."""


def guard(command: Callable[[], int | None]) -> int:
    """Run `command` and turn whatever it raises into a line and an exit code."""
    try:
        if sys.stdout is None:
            raise ValueError("standard output is closed: send it to a file, or to /dev/null")
        code = command() or 0
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has seen enough
        discard_stdout()
        return 1
    except (Exception, KeyboardInterrupt) as error:
        code = _report(error)
    if code == INTERRUPTED or ctrl_c.came:
        say("interrupted")
        return INTERRUPTED
    return code


def _report(error: BaseException) -> int:
    """Print the line; the exit code."""
    if ctrl_c.came or not isinstance(error, Exception):
        return INTERRUPTED
    if "--debug" in sys.argv:
        sys.stderr.write(printable(traceback.format_exc()))
    message, code = explain(error)
    if message:
        say(message)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        discard_stdout()
    return code


def explain(error: Exception) -> tuple[str, int]:
    """A line that says what is wrong and how to mend it, and the exit code."""
    if isinstance(error, UsageError):
        return str(error), 2
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # Typer's own
        message = _line(error.format_message()).replace("Value error, ", "")
        path = getattr(getattr(error, "ctx", None), "command_path", "st3")
        message += _of_a_method(getattr(error, "option_name", None))
        # `st3` alone has printed its help by now, and has nothing to say.
        return f"{message} (see {path} --help)" if message else "", int(error.exit_code)
    from st3.inference.sources import PictureError

    if isinstance(error, PictureError):
        return str(error), 1
    memory = _out_of_memory(error)
    if memory:
        return memory, 1
    if isinstance(error, UnicodeError) and sys.getfilesystemencoding() != "utf-8":
        locale = sys.getfilesystemencoding()
        return (
            f"this locale ({locale}) lacks letters that are needed: set PYTHONUTF8=1, or "
            "LC_ALL=C.UTF-8"
        ), 1
    if isinstance(error, ImportError) and "torchvision::" in _first_cause(error):
        return (
            "transformers cannot be imported beside this torchvision, which was built for another "
            "torch: take both from one index, or pip uninstall torchvision"
        ), 1
    if isinstance(error, ImportError) and "Flash" in str(error):
        return f"{_line(str(error))} Or use --attn-implementation sdpa.", 1
    if isinstance(error, (ValueError, RuntimeError, OSError, ImportError)) and str(error):
        return _line(str(error)), 1
    return f"{type(error).__name__}: {_line(str(error))} (--debug shows where)", 1


def _first_cause(error: BaseException) -> str:
    """What transformers' "could not import" comes from."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error)


def _of_a_method(option: str | None) -> str:
    """Where to write what is no option but a parameter of some method; nothing for all others."""
    if option is None:
        return ""
    from st3.methods import METHODS, parameters

    name = option.lstrip("-").replace("-", "_")
    method = next((method for method in METHODS if name in parameters(method)), None)
    if method is None:
        return ""
    return f" It is a method's own: write it behind the name, as in {method}:{name}=..."


def _out_of_memory(error: Exception) -> str | None:
    text = str(error)
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        return "out of memory: use a smaller model or --dtype bfloat16, or lower --max-new-tokens"
    return None


def _line(text: str) -> str:
    return " ".join(text.split())
