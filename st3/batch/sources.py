"""Where rows come from: a folder, a glob, a table, shards of a WebDataset, or standard input.

A source is read once, before anything else, and light: names, prompts and places of pictures, not
the pictures. What is wrong with all of it is an error then; with one row, an error of that row.
"""

from __future__ import annotations

import glob
import hashlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from st3.batch.parquet import parquet_rows
from st3.batch.row import Row, make_row
from st3.batch.shards import shard_rows
from st3.batch.tables import csv_rows, lines_rows
from st3.files import plainly, valid

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
_LINES, _TABLES = {".jsonl", ".ndjson"}, {".csv", ".parquet"}


@dataclass(frozen=True)
class Source:
    """Rows, in their order.

    Attributes:
        name: what was asked for.
        rows: at least one; ids are unique.
    """

    name: str
    rows: Sequence[Row]

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of `ids`, `prompts` and `pictures`: what is shown, not the pictures' contents."""
        return {
            "ids": _fingerprint(row.id for row in self.rows),
            "prompts": _fingerprint(row.prompt for row in self.rows),
            "pictures": _fingerprint(
                ([str(image) for image in row.images], row.video) for row in self.rows
            ),
        }


def open_source(*names: str, prompt: str | None = None, relative: Path | None = None) -> Source:
    """Read a source.

    Args:
        names: a folder (looked through with all in it), a glob, a picture, a JSONL, CSV or Parquet
            file, tar files of a WebDataset (a glob, or with braces: `a-{000..012}.tar`), or `-`,
            JSONL on standard input; several files are one source.
        prompt: asked of every row that has none of its own.
        relative: paths on standard input are relative to this; by default to the working folder.

    Raises:
        ValueError: no such source, no rows, unreadable, columns missing, duplicate ids, or a
            package that its format needs is not installed.
    """
    name = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
    if names == ("-",):
        name = "standard input"
        rows = lines_rows(_standard_input(), name, relative or Path(), prompt)
    elif len(names) == 1 and Path(names[0]).expanduser().is_dir():
        rows = folder_rows(Path(names[0]).expanduser(), prompt)
    else:
        rows = _rows_of(name, [path for each in names for path in _files(each)], prompt)
    if not rows:
        raise ValueError(f"{name} has no rows: there is nothing to ask")
    _check_ids(rows, name)
    return Source(name, rows)


def shared(names: Sequence[str], written: Iterable[Path]) -> Path | None:
    """What of `written` is a file of the source, under whatever name or link; None of nothing.

    Raises:
        ValueError: a name's braces are none.
    """
    alone = list(names) == ["-"]
    files = [Path("/dev/stdin")] if alone else [path for each in names for path in _files(each)]
    for out in filter(Path.exists, written):
        there = out.stat()
        for path in files:
            with suppress(OSError):  # it is not there
                if os.path.samestat(path.stat(), there):
                    return out
    return None


def check_prompts(source: Source) -> None:
    """See that some row has a prompt.

    Raises:
        ValueError: none has.
    """
    if all(row.problem is not None and "no prompt" in row.problem for row in source.rows):
        raise ValueError(f"{source.name} has no prompts: give --prompt, what to ask of each row")


def _files(name: str) -> list[Path]:
    """That a name, a glob or braces stand for."""
    if name == "-":
        raise ValueError("- is standard input: give it alone")
    names = sorted(_braced(name)) if "{" in name and not Path(name).exists() else [name]
    found: list[Path] = []
    for each in names:
        here = Path(each).expanduser()
        if here.exists() or not glob.has_magic(each):
            found.append(here)
        else:
            matching = (Path(x) for x in sorted(glob.glob(str(here), recursive=True)))
            found += [path for path in matching if not path.is_dir()]
    return found


def _rows_of(name: str, found: Sequence[Path], prompt: str | None) -> list[Row]:
    """Rows of files of one kind."""
    missing = next((path for path in found if not path.exists()), None)
    if missing is not None:
        raise ValueError(f"there is no {missing}: give a folder, a file, a glob in quotes, or -")
    if not found:
        raise ValueError(f"{name}: nothing has such a name")
    folder = next((path for path in found if path.is_dir()), None)
    if folder is not None:
        raise ValueError(f"{folder} is a folder: give it alone, or a glob: '{folder}/**/*.jpg'")
    kinds = {path.suffix.lower() for path in found}
    if kinds == {".tar"}:
        return shard_rows(found, prompt)
    if len(kinds) == 1 and kinds <= _LINES | _TABLES:
        rows: list[Row] = []
        for path in found:
            rows += _file_rows(path, prompt, len(rows))
        return rows
    if kinds <= PICTURES:
        return _numbered(_picture(str(path), path, prompt) for path in found)
    other = sorted(kinds - PICTURES)[0]
    raise ValueError(
        f"{name}: {other or 'a file without an ending'} is nothing to take rows from: give "
        f"pictures, or files of one kind: {', '.join(sorted(_LINES | _TABLES))}, .tar"
    )


def _file_rows(path: Path, prompt: str | None, first: int) -> list[Row]:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return parquet_rows(path, prompt, first)
    with plainly("read", path):
        data = path.read_bytes()
    read = csv_rows if suffix == ".csv" else lines_rows
    return read(data, str(path), path.parent, prompt, first)


def folder_rows(folder: Path, prompt: str | None) -> list[Row]:
    """A row a picture, in the order of their paths, which are the ids; hidden ones are left out.

    Raises:
        ValueError: a folder that cannot be read, or no picture.
    """

    def fail(error: OSError) -> None:
        raise ValueError(f"cannot read {error.filename}: {error.strerror}") from error

    found = []
    for place, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, name) for name in files if not name.startswith(".")]
    pictures = sorted(path for path in found if path.suffix.lower() in PICTURES)
    if not pictures:
        raise ValueError(f"{folder}: no picture in it (wanted: {', '.join(sorted(PICTURES))})")
    return _numbered(
        _picture(path.relative_to(folder).as_posix(), path, prompt) for path in pictures
    )


def _picture(name: str, path: Path, prompt: str | None) -> Row:
    return make_row({"id": name, "image": str(path.absolute())}, 0, prompt)


def _numbered(rows: Iterable[Row]) -> list[Row]:
    return [replace(row, number=number) for number, row in enumerate(rows)]


def _standard_input() -> bytes:
    if sys.stdin is None:
        raise ValueError("standard input is closed: pipe JSONL in, or give a file")
    try:
        return sys.stdin.buffer.read()
    except OSError as error:
        raise ValueError(f"standard input cannot be read: {error.strerror}") from None


def _check_ids(rows: Sequence[Row], name: str) -> None:
    known: dict[str, Row] = {}
    for row in rows:
        before = known.setdefault(valid(str(row.id)), row)
        if before is not row:
            what = f"the same id {row.id!r}"
            if before.id != row.id:
                what = f"ids {before.id!r} and {row.id!r}, which are the same in a table"
            raise ValueError(
                f"{name}: rows {before.number + 1} and {row.number + 1} have {what}: ids must "
                "differ"
            )


def _fingerprint(values: Iterable[Any]) -> str:
    found = hashlib.sha256()
    for value in values:
        found.update(repr(value).encode() + b"\n")
    return found.hexdigest()[:16]


def _braced(name: str) -> Iterator[str]:
    """`a-{000..002}.tar` -> a-000.tar, a-001.tar, a-002.tar; and `{a,b}`.

    Raises:
        ValueError: braces that do not close, or an odd range.
    """
    head, brace, rest = name.partition("{")
    if not brace:
        yield name
        return
    inside, brace, tail = rest.partition("}")
    if not brace:
        raise ValueError(f"{name}: a brace is not closed: write it as shard-{{000..012}}.tar")
    first, dots, last = inside.partition("..")
    parts: Iterable[str] = inside.split(",")
    if dots:
        if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
            raise ValueError(f"{name}: {{{inside}}} is no range: write it as {{000..012}}")
        width = len(first) if first.startswith("0") else 0
        parts = (str(n).zfill(width) for n in range(int(first), int(last) + 1))
    for part in parts:
        yield from _braced(head + part + tail)
