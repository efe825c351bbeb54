"""Ctrl-C is noticed even where Python throws it away."""

from __future__ import annotations

import os
import signal
import time
from types import SimpleNamespace
from typing import Any

import pytest

from st3.interrupts import TimeIsUp, noticed
from st3_cli.ctrl_c import CtrlC


class Freed:
    """Interrupts the process while it is being freed: Python prints the exception and goes on."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(10_000):  # until the interpreter looks
            pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_python_loses() -> None:
    before = signal.getsignal(signal.SIGINT)
    with noticed(signal.SIGINT) as interrupts:
        assert not interrupts.came
        Freed()
        assert interrupts.came
    assert signal.getsignal(signal.SIGINT) is before


def _interrupt(done: list[int]) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    done += range(10_000)


def test_an_interrupt_that_it_does_not_lose() -> None:
    with pytest.raises(KeyboardInterrupt), noticed(signal.SIGINT):
        _interrupt([])


def test_the_former_handler_has_its_say() -> None:
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        with pytest.raises(KeyboardInterrupt), noticed(signal.SIGINT):
            _interrupt([])
    finally:
        signal.signal(signal.SIGINT, before)
    assert came == [signal.SIGINT]


def test_what_is_held_comes_afterwards() -> None:
    done: list[int] = []
    with (
        noticed(signal.SIGINT) as interrupts,
        pytest.raises(KeyboardInterrupt),
        interrupts.held(),
    ):
        _interrupt(done)
    assert len(done) == 10_000


def test_an_alarm_stops_and_is_no_ctrl_c() -> None:
    """Also where Python loses it: nobody has pressed Ctrl-C then, a moment later neither."""
    with noticed(signal.SIGALRM) as interrupts:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        with pytest.raises(TimeIsUp):
            time.sleep(5)
    assert interrupts.came
    watch = CtrlC()
    lost: Any = SimpleNamespace(exc_type=TimeIsUp)
    watch._lost(lost)
    time.sleep(0.1)  # a second SIGINT would end this test
    assert not watch.came
