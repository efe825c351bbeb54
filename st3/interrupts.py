"""Ctrl-C that is not lost, for work that goes on for hours."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_ALARM = getattr(signal, "SIGALRM", None)  # not everywhere


class TimeIsUp(KeyboardInterrupt):
    """What an alarm raises: it stops work as Ctrl-C does, and nobody has pressed that."""


class Interrupts:
    """The signals that `noticed` looks for.

    Attributes:
        came: whether one has come. Python throws an exception away that is raised while it frees an
            object: whoever goes on with the next piece of work asks first.
        before: the signals' former handlers.
    """

    def __init__(self) -> None:
        self.came = False
        self.before: dict[int, Any] = {}
        self._holding = False

    def note(self, number: int, frame: FrameType | None) -> None:
        """A signal's handler; the one that was there before may know a better end."""
        self.came = True
        if self._holding:
            return
        before = self.before.get(number)
        if callable(before):
            before(number, frame)
        raise TimeIsUp if number == _ALARM else KeyboardInterrupt

    @contextmanager
    def held(self) -> Iterator[None]:
        """KeyboardInterrupt waits until the end: what is finished is written first."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        if self.came:
            raise KeyboardInterrupt


@contextmanager
def noticed(*signals: signal.Signals) -> Iterator[Interrupts]:
    """KeyboardInterrupt on these signals, as usual, and a note of it; in the main thread only."""
    interrupts = Interrupts()
    if threading.current_thread() is threading.main_thread():
        for number in signals:
            interrupts.before[number] = signal.signal(number, interrupts.note)
    try:
        yield interrupts
    finally:
        for each, handler in interrupts.before.items():
            signal.signal(each, handler)
