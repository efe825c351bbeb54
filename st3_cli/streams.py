"""Standard streams as the rest may expect them, however the process was started."""

from __future__ import annotations

import io
import os
import sys


def mend_streams() -> None:
    """No letter that cannot be written is an error, and no file of ours gets a stream's number.

    A stdin or stdout that is closed stays None; whoever needs it says so.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def discard_stdout() -> None:
    """What cannot be written any more is not tried again when the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
