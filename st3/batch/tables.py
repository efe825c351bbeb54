"""Rows of tables: JSON lines and CSV; what is wrong with a table, and with a row of it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from st3.batch.row import Row, make_row
from st3.inference.sources import local_path

_SHOWN = ("image", "images", "video")


def lines_rows(
    data: bytes, name: str, folder: Path, prompt: str | None, first: int = 0
) -> list[Row]:
    """Lines of JSON objects; paths of pictures are relative to `folder`, numbers are from `first`.

    Raises:
        ValueError: a line that is none, with its number; or columns missing.
    """
    found: list[dict[str, Any]] = []
    for number, line in enumerate(data.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            read = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{name}, line {number}: no JSON ({error})") from None
        if not isinstance(read, dict):
            raise ValueError(f"{name}, line {number}: no JSON object, but {type(read).__name__}")  # noqa: TRY004
        found.append(read)
    return table_rows(found, {key for row in found for key in row}, name, folder, prompt, first)


def csv_rows(data: bytes, name: str, folder: Path, prompt: str | None, first: int = 0) -> list[Row]:
    """A table with a head; an empty cell is none, and `images` is a JSON list.

    Raises:
        ValueError: no text, or columns missing.
    """
    longest = csv.field_size_limit()  # of the whole process
    try:
        text = data.decode("utf-8-sig")
        csv.field_size_limit(max(longest, len(data)))  # a `data:` URL is long
        reader = csv.DictReader(io.StringIO(text, newline=""))
        found: list[dict[str, Any]] = [
            {key: value or None for key, value in row.items() if key} for row in reader
        ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{name} is no CSV in UTF-8 ({error})") from None
    finally:
        csv.field_size_limit(longest)
    for row in found:
        if images := row.get("images"):
            row["images"] = _listed(images)
    return table_rows(found, reader.fieldnames or (), name, folder, prompt, first)


def _listed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return [text]


def table_rows(
    found: Sequence[Mapping[str, Any]],
    columns: Iterable[str],
    name: str,
    folder: Path,
    prompt: str | None,
    first: int = 0,
) -> list[Row]:
    """Rows of a table; paths are relative to `folder`, numbers are from `first`.

    Raises:
        ValueError: no column of pictures or videos, or none of prompts where none is given.
    """
    columns = sorted(set(columns))
    if not found:
        return []
    there = ", ".join(columns) or "none"
    if not any(key in columns for key in _SHOWN):
        raise ValueError(f"{name} has no column image, images or video; it has: {there}")
    if prompt is None and "prompt" not in columns:
        raise ValueError(f"{name} has no column prompt, so give --prompt; it has: {there}")
    return [
        make_row(dict(row) | _resolved(row, folder), number, prompt)
        for number, row in enumerate(found, start=first)
    ]


def resolved(source: str, folder: Path) -> str:
    """A path, relative to `folder`; URLs are as they are."""
    path = local_path(source)
    if path is None or source.lower().startswith("file:"):
        return source
    return str(folder.absolute() / path)


def _resolved(row: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What a row shows, paths resolved."""

    def place(value: Any) -> Any:
        if not isinstance(value, str) or not value or value == "-":
            return None if value == "-" else value  # standard input is the source's
        return resolved(value, folder)

    found = {}
    for key in _SHOWN:
        value = row.get(key)
        if value is not None:
            many = isinstance(value, (list, tuple))
            found[key] = [place(x) for x in value] if many else place(value)
    return found
