"""Ctrl-C at any moment: one line, 130, no traceback; also where Python would lose it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from st3_cli.ctrl_c import ctrl_c

ROOT = Path(__file__).parents[2]
ANNOUNCE = "import os, time; os.write(1, b'now'); "
CONVERT = f"""
{ANNOUNCE}
try:
    time.sleep(20)
except KeyboardInterrupt:
    raise ImportError("numpy.core.multiarray failed to import")
"""
"""What a compiled module does with an exception that it did not expect."""
SWALLOW = f"""
{ANNOUNCE}
try:
    time.sleep(20)
except BaseException:
    pass
"""
AT_EXIT = """
import atexit, os, time
atexit.register(lambda: (os.write(1, b'now'), time.sleep(20)))
raise ImportError("no torch here")
"""


def interrupt(
    folder: Path, module: str, text: str, *arguments: str, before: Callable[[], None] | None = None
) -> tuple[int, str, str]:
    """Send SIGINT when a module in the place of `module` says so; code, stdout, stderr."""
    (folder / f"{module}.py").write_text(text)
    path = os.pathsep.join([str(folder), str(ROOT)])
    with subprocess.Popen(
        [sys.executable, "-m", "st3_cli", *arguments], env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=before,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            said = process.stdout.read(3)
            while not said.endswith(b"now"):
                said += process.stdout.read(1) or pytest.fail("ended before it was to be stopped")
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=15)
        finally:
            process.kill()
    return process.returncode, (said + out).decode(), err.decode()


@pytest.mark.parametrize(
    ("module", "text", "arguments"),
    [
        ("rich", CONVERT, ["--help"]),  # the first moments
        ("typer", SWALLOW, ["--help"]),
        ("torch", CONVERT, ["run"]),
        ("torch", SWALLOW, ["profile"]),
    ],
)
def test_one_line(tmp_path: Path, module: str, text: str, arguments: list[str]) -> None:
    code, _, err = interrupt(tmp_path, module, text, *arguments)
    assert err == "st3: interrupted\n"
    assert code == 130


def test_when_all_is_done(tmp_path: Path) -> None:
    """While the interpreter ends, which takes a while with torch in it."""
    code, _, err = interrupt(tmp_path, "torch", AT_EXIT, "run")
    assert (code, err) == (130, "st3: no torch here\nst3: interrupted\n")


def test_whoever_ignores_it_goes_on_doing_so(tmp_path: Path) -> None:
    """As under nohup."""

    def ignore() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    short = f"{ANNOUNCE} time.sleep(0.5); raise ImportError('no torch here')"
    code, _, err = interrupt(tmp_path, "torch", short, "run", before=ignore)
    assert (code, err) == (1, "st3: no torch here\n")


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    before = signal.getsignal(signal.SIGINT)
    ctrl_c.watch()
    yield
    signal.signal(signal.SIGINT, before)


class Freed:
    """Interrupts the process while it is being freed, where Python loses exceptions."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(10_000):  # until the interpreter looks
            pass


def _work() -> None:
    Freed()
    time.sleep(10)


@pytest.mark.usefixtures("watched")
def test_what_python_loses_comes_again() -> None:
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        _work()
    assert time.monotonic() - started < 5
    assert ctrl_c.came
