"""Ctrl-C that is not lost, for work that goes on for hours."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def noticed(*signals: signal.Signals) -> Iterator[Callable[[], bool]]:
    """KeyboardInterrupt on these signals, as usual; yields whether one has come.

    Python throws an exception away that is raised while it frees an object: whoever goes on with
    the next piece of work asks first.
    """
    came = False

    def note(*_: Any) -> None:
        nonlocal came
        came = True
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield lambda: came
        return
    before = {number: signal.signal(number, note) for number in signals}
    try:
        yield lambda: came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def held(*signals: signal.Signals) -> Iterator[None]:
    """These signals wait until the end: what is finished is written first."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
