"""Ctrl-C, at whatever moment: one line, and the exit code 130.

Python makes an exception of it, which not everything lets through: a compiled module that is being
imported turns it into another error, an object that is being freed loses it. Little is imported
here, since this stands before all other imports.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys

TYPE_CHECKING = False  # as type checkers know it: typing itself takes longer than all of this
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any, NoReturn

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


class CtrlC:
    """The handler.

    Attributes:
        came: whether it was pressed; what is raised from then on follows from that.
        ending: set when all work is done, and only the interpreter is left to end.
    """

    def __init__(self) -> None:
        """Nothing is watched yet."""
        self.came = self.ending = False
        self._report = sys.unraisablehook

    def watch(self) -> None:
        """From now on, unless whoever started us wants it ignored, as nohup does."""
        self.came = self.ending = False
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            return
        signal.signal(signal.SIGINT, self)
        if sys.unraisablehook != self._lost:
            self._report = sys.unraisablehook
            sys.unraisablehook = self._lost
            # What is first in here comes last, when nothing can be printed any more.
            atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)

    def __call__(self, number: int, frame: FrameType | None) -> NoReturn:
        """Raise KeyboardInterrupt, or leave at once: nothing is lost in the middle of an import."""
        again, self.came = self.came, True
        if again or self.ending or _importing(frame):
            leave()
        raise KeyboardInterrupt

    def _lost(self, what: sys.UnraisableHookArgs) -> Any:
        """Where Python throws an exception away: this one comes again, a moment later."""
        if not issubclass(what.exc_type, KeyboardInterrupt):
            return self._report(what)
        if what.exc_type is not KeyboardInterrupt:  # an alarm, which rings again
            return None
        from threading import Timer

        self.came = False
        timer = Timer(0.02, os.kill, (os.getpid(), signal.SIGINT))
        timer.daemon = True
        return timer.start()


ctrl_c = CtrlC()


def leave() -> NoReturn:
    """End the process here and now."""
    show_cursor = "\x1b[?25h" if os.isatty(2) else ""  # a progress bar may have hidden it
    os.write(2, f"{show_cursor}st3: interrupted\n".encode())
    os._exit(INTERRUPTED)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
