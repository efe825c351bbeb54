"""The folder of a sweep: settings that must not change, and finished cells, one a line.

A cell is appended in one write as it ends, so that a kill at any moment costs the cell that was
being computed and nothing else; several processes may append to one file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from st3.files import (
    append_rows,
    drop_half_row,
    make_folder,
    plainly,
    read_rows,
    write_text,
)

BASELINE = "untrimmed"
"""The spec of the row that every cell is compared with."""
RESUMES = "; once that is mended, the same command goes on with what is finished"
"""What follows a line that says that a finished cell, or what came of all, was not written."""
_SETTINGS, _CELLS = "settings.json", "cells.jsonl"
_FIGURES = (
    "prefill_macs_ratio", "kv_ratio", "kv_mean_ratio", "ttft_ms", "tpot_ms", "answer_ms",
    "fidelity", "token_agreement", "kl",
)  # fmt: skip
_OF_BASELINE = ("questions", "ttft_ms", "tpot_ms")


class FolderError(ValueError):
    """The folder is not this sweep's."""


def open_folder(folder: Path, settings: dict[str, Any]) -> None:
    """Begin a sweep there, or go on with one; a line that a kill cut short is dropped.

    Raises:
        FolderError: the folder holds a sweep with other settings, or other files.
        ValueError: it cannot be read or written, or its settings are broken.
    """
    with plainly("write into", folder):
        make_folder(folder)
        path = folder / _SETTINGS
        if not path.exists():
            # A kill may have left a hidden temporary file behind.
            if any(not file.name.startswith(".") for file in folder.iterdir()):
                raise FolderError(f"{folder} holds other files: give another --output")
            write_text(path, json.dumps(settings, indent=2) + "\n")
            return
    before = _read_settings(path)
    now = json.loads(json.dumps(settings))
    other = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if other:
        shown = "; ".join(f"{key}: there {before.get(key)}, here {now.get(key)}" for key in other)
        raise FolderError(
            f"{folder} holds a sweep with other settings ({shown}): give another --output"
        )
    with plainly("write", folder / _CELLS):
        drop_half_row(folder / _CELLS)


def append_cell(folder: Path, row: dict[str, Any]) -> None:
    """Add one finished cell, on the disk before this returns.

    Raises:
        ValueError: the disk is full, or does not let us.
    """
    with plainly("write", folder / _CELLS, RESUMES):
        append_rows(folder / _CELLS, [row])


def read_cells(folder: Path) -> dict[str, dict[str, Any]]:
    """Finished cells by their spec.

    Raises:
        ValueError: not readable, or a line that is no finished cell, with its number.
    """
    path = folder / _CELLS
    with plainly("read", path):
        rows = read_rows(path)
    for number, row in enumerate(rows, start=1):
        lacking = _lacking(row)
        if lacking is not None:
            raise ValueError(
                f'{path}, line {number}, has no "{lacking}" that makes sense: take that line out, '
                "and its cell is run again"
            )
    return {row["spec"]: row for row in rows}


def _lacking(row: dict[str, Any]) -> str | None:
    """A key without which a row is no finished cell, or None."""
    if not isinstance(row.get("spec"), str):
        return "spec"
    if isinstance(row.get("problem"), str):
        return None
    for key in _OF_BASELINE if row["spec"] == BASELINE else _FIGURES:
        if not isinstance(row.get(key), (int, float)):
            return key
    return None if "accuracy" in row else "accuracy"  # null where no answer is known


def _read_settings(path: Path) -> dict[str, Any]:
    """The settings of a sweep that was begun.

    Raises:
        ValueError: not readable, or broken, with the number of the line.
    """
    with plainly("read", path):
        text = path.read_text(encoding="utf-8", errors="replace")
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {error.lineno}, is no JSON ({error.msg}): mend it, or give another "
            "--output"
        ) from None
    return found if isinstance(found, dict) else {}
