"""Files of which no half-written one is left: whole ones, and logs of one JSON line a result.

A symbolic link in the place of a file or a folder is followed, also one to something that is not
there yet: what is written is its target, whole or not at all, in the target's folder, and the link
stays. All text is UTF-8, whatever the locale; bytes of names that are none are escaped.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def follow(path: Path) -> Path:
    """Where writing to `path` leads: to itself, or through symbolic links to what may not be yet.

    Raises:
        OSError: links that lead in a circle, or through a place that cannot be looked into.
    """
    with suppress(FileNotFoundError, NotADirectoryError):
        path.stat()  # resolve() is silent about circles in some versions of Python
    return Path(os.path.realpath(path))


def make_folder(path: Path) -> None:
    """Make a folder and those above it, where they are not there.

    Raises:
        OSError: see `follow`; a file, or not allowed.
    """
    follow(path).mkdir(parents=True, exist_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it becomes `path` if all goes well, and goes if not.

    Raises:
        OSError: see `follow`; or the folder is not there, or not writable.
    """
    target = follow(path)
    handle, name = tempfile.mkstemp(
        dir=target.parent, prefix=f".{target.stem}.", suffix=path.suffix
    )
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # mkstemp's is for its owner alone
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, all or nothing."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def valid(text: str) -> str:
    """The same in UTF-8: halves of letters, which it cannot write, are escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def append_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Add results, one JSON line each, in one write that is on the disk before this returns.

    A kill at any moment leaves all of them or none; several processes may append to one file.
    """
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(
        "utf-8", "backslashreplace"
    )
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        with _alone(handle):
            before = os.fstat(handle).st_size
            try:
                if os.write(handle, text) < len(text):  # a full disk takes a part without a word
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
                os.fsync(handle)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(handle, before)
                raise
    finally:
        os.close(handle)


@contextmanager
def _alone(handle: int) -> Iterator[None]:
    """No other process appends to the file meanwhile, where the system can see to that."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with suppress(OSError):  # some network file systems cannot
        fcntl.flock(handle, fcntl.LOCK_EX)
    yield  # closing the handle ends it


def read_rows(path: Path) -> list[dict[str, Any]]:
    """What `append_rows` wrote; a line that a crash of the machine cut short is left out.

    Raises:
        ValueError: a line that nobody wrote so.
    """
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.endswith(b"\n"):
            break
        try:
            rows.append({**json.loads(line)})
        except (ValueError, TypeError):
            raise ValueError(
                f"{path}, line {number}, is no JSON object: take that line out"
            ) from None
    return rows


def drop_half_row(path: Path) -> None:
    """Take away a last line that was cut short, so that more can be appended."""
    text = path.read_bytes() if path.exists() else b""
    whole = text.rfind(b"\n") + 1
    if whole < len(text):
        with replacing(path) as temporary:
            temporary.write_bytes(text[:whole])


@contextmanager
def plainly(doing: str, path: Path, then: str = "") -> Iterator[None]:
    """Turn what a disk says into one line: cannot write PATH: No space left on device.

    Args:
        doing: to the file: "read", "write".
        path: the file or folder.
        then: what follows the line: how to mend it, and what is not lost.

    Raises:
        ValueError: an OSError came, and is its cause.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"cannot {doing} {path}: {reason}{then}") from error
