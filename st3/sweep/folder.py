"""The folder of a sweep: settings that must not change, and finished cells, one a line.

A cell is appended in one write as it ends, so that a kill at any moment costs the cell that was
being computed and nothing else; several processes may append to one file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from st3.files import append_rows, drop_half_row, make_folder, read_rows, write_text

_SETTINGS, _CELLS = "settings.json", "cells.jsonl"


def open_folder(folder: Path, settings: dict[str, Any]) -> None:
    """Begin a sweep there, or go on with one; a line that a kill cut short is dropped.

    Raises:
        ValueError: the folder holds a sweep with other settings, or other files.
    """
    make_folder(folder)
    path = folder / _SETTINGS
    if not path.exists():
        # A kill may have left a hidden temporary file behind.
        if any(not file.name.startswith(".") for file in folder.iterdir()):
            raise ValueError(f"{folder} holds other files: give another --output")
        write_text(path, json.dumps(settings, indent=2) + "\n")
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    now = json.loads(json.dumps(settings))
    other = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if other:
        shown = "; ".join(f"{key}: there {before.get(key)}, here {now.get(key)}" for key in other)
        raise ValueError(
            f"{folder} holds a sweep with other settings ({shown}): give another --output"
        )
    drop_half_row(folder / _CELLS)


def append_cell(folder: Path, row: dict[str, Any]) -> None:
    """Add one finished cell, on the disk before this returns."""
    append_rows(folder / _CELLS, [row])


def read_cells(folder: Path) -> dict[str, dict[str, Any]]:
    """Finished cells by their spec."""
    return {row["spec"]: row for row in read_rows(folder / _CELLS)}
