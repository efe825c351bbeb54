"""Ctrl-C that is not lost, for work that goes on for hours."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Interrupts:
    """The signals that `noticed` looks for.

    Attributes:
        came: whether one has come. Python throws an exception away that is raised while it frees an
            object: whoever goes on with the next piece of work asks first.
    """

    def __init__(self) -> None:
        self.came = False
        self._holding = False

    def note(self, *_: Any) -> None:
        """A signal's handler."""
        self.came = True
        if not self._holding:
            raise KeyboardInterrupt

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
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, interrupts.note) for number in signals}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
