"""How far a suite has come: which cells are measured, and why the others are not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from st3.tables import NOT_MEASURED, Table
from st3.verification.report import RED


@dataclass(frozen=True)
class Standing:
    """Names of cells.

    Attributes:
        measured: those that are.
        lacking: those that are not, and why.
        red: models and methods that are wrong on this device.
    """

    measured: tuple[str, ...]
    lacking: dict[str, str]
    red: tuple[str, ...]

    @property
    def failed(self) -> bool:
        """Whether something is wrong, or went wrong."""
        return bool(self.red) or any(why.startswith("failed") for why in self.lacking.values())

    def tables(self) -> list[Table]:
        """What is lacking; nothing if nothing is."""
        if not self.lacking:
            return []
        return [Table("Not measured", ("cell", "why"), tuple(self.lacking.items()))]


def standing(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> Standing:
    """Of the rows of a folder and the cells of a suite; what an earlier start said last counts."""
    last: dict[str, str | None] = {}
    red: dict[str, list[str]] = {}
    for row in rows:
        name = row.get("cell")
        if name is None:
            continue
        if "error" in row:
            last[name] = f"failed: {' '.join(str(row['error']).split())[:200]}"
        elif "skipped" in row:
            last[name] = f"{NOT_MEASURED}: {row['skipped']}"
        elif "interrupted" in row:
            last[name] = f"{NOT_MEASURED}: it was stopped"
        else:
            last[name] = None
        red.setdefault(name, [])
        if row.get("verdict") == RED:
            red[name].append(f"{row['model']}: {row['method']} in {row['dtype']}")
    why = {name: last.get(name, f"{NOT_MEASURED}: time was up") for name in names}
    return Standing(
        measured=tuple(name for name in names if why[name] is None),
        lacking={name: text for name, text in why.items() if text is not None},
        red=tuple(dict.fromkeys(one for name in names for one in red.get(name, ()))),
    )
