"""Files and folders that a command will write: refused at once if they cannot be."""

from __future__ import annotations

import tempfile
from pathlib import Path

from st3.files import follow
from st3_cli.errors import UsageError

_FILES = (".json", ".jsonl", ".csv", ".html", ".md", ".png")


def check_output(option: str, path: Path | None, force: bool, *suffixes: str) -> None:
    """Check that `path` can be written, if there is one.

    Raises:
        UsageError: a folder, another suffix, a place that is not there or not writable, a file
            that exists while `force` is off, or links that lead in a circle.
    """
    if path is None:
        return
    if path.is_dir():
        raise UsageError(f"{option}: {path} is a folder, give the name of a file in it")
    if path.suffix.lower() not in suffixes:
        kinds = " or ".join(suffixes)
        raise UsageError(f"{option} writes {kinds}: name it {path.with_suffix(suffixes[0])}")
    folder = _target(option, path).parent
    if not folder.is_dir():
        shown = folder if path.is_symlink() else path.parent
        raise UsageError(f"{option}: there is no folder {shown}")
    _check_writable(option, folder)
    if path.exists() and not force:
        raise UsageError(f"{path} exists: give another name, or --force to overwrite it")


def check_folder(option: str, folder: Path) -> None:
    """Check that files can be written into `folder`, which may still have to be made.

    Raises:
        UsageError: a file or the name of one, a place that is not writable, or links that lead in
            a circle.
    """
    target = _target(option, folder)
    nearest = next(place for place in (target, *target.parents) if place.exists())
    if not nearest.is_dir():
        raise UsageError(f"{option}: {nearest} is a file, give a folder")
    if not folder.exists() and folder.suffix.lower() in _FILES:
        raise UsageError(f"{option}: {folder} is named like a file, give a folder")
    _check_writable(option, nearest)


def _target(option: str, path: Path) -> Path:
    try:
        return follow(path)
    except OSError as error:
        raise UsageError(f"{option}: {path} cannot be written ({error.strerror})") from None


def _check_writable(option: str, folder: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"{option}: the folder {folder} is not writable ({error.strerror})"
        ) from None
