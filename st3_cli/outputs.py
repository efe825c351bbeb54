"""Files that a command will write: refused at once if they cannot be, not after the work."""

from __future__ import annotations

import tempfile
from pathlib import Path

from st3_cli.errors import UsageError


def check_output(option: str, path: Path | None, force: bool, *suffixes: str) -> None:
    """Check that `path` can be written, if there is one.

    Raises:
        UsageError: a folder, another suffix, a place that is not there or not writable, or a file
            that exists while `force` is off.
    """
    if path is None:
        return
    if path.is_dir():
        raise UsageError(f"{option}: {path} is a folder, give the name of a file in it")
    if path.suffix.lower() not in suffixes:
        kinds = " or ".join(suffixes)
        raise UsageError(f"{option} writes {kinds}: name it {path.with_suffix(suffixes[0])}")
    if not path.parent.is_dir():
        raise UsageError(f"{option}: there is no folder {path.parent}")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UsageError(
            f"{option}: the folder {path.parent} is not writable ({error.strerror})"
        ) from None
    if path.exists() and not force:
        raise UsageError(f"{path} exists: give another name, or --force to overwrite it")
