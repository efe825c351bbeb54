"""What a suite leaves behind beside its rows: tables, pictures, and one page with all of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from st3.benchmark.standing import Standing
from st3.benchmark.tables import made, rounds, tables, title_of, work
from st3.files import write_text
from st3.plots.benchmark import Bars, save_bars, save_savings, save_timelines
from st3.plots.page import page, paragraph, pictured, table_of
from st3.tables import spread

Row = dict[str, Any]
TABLES, PAGE = "tables.md", "report.html"
_SPEEDS = ("table", "static", "family", "recorded", "long", "methods", "peers")
_NOTHING = "Nothing has been measured.\n"


def save_tables(folder: Path, rows: Sequence[Row], so_far: Standing) -> None:
    """The tables alone, which costs next to nothing."""
    found = tables(rows)
    parts = [table.markdown() for table in (*found, *so_far.tables())]
    write_text(folder / TABLES, "\n".join([*parts, made(rows) + "\n" if found else _NOTHING]))


def save_album(folder: Path, rows: Sequence[Row], so_far: Standing, title: str) -> list[str]:
    """Everything; each file is whole or not there.

    Args:
        folder: of the rows.
        rows: all that it holds.
        so_far: of the suite.
        title: of the page.

    Returns:
        The names of the files, the page first.
    """
    save_tables(folder, rows, so_far)
    good = [row for row in rows if "model" in row and "interrupted" not in row]
    pictures = _pictures(folder, good)
    parts = [paragraph(sentence) for sentence in _sentences(so_far)]
    parts += [pictured(folder / name, caption) for name, caption in pictures.items()]
    found = tables(rows)
    parts += [table_of(table) for table in (*found, *so_far.tables())]
    write_text(folder / PAGE, page(title, title, parts, made(rows) if found else _NOTHING))
    return [PAGE, TABLES, *pictures]


def _sentences(so_far: Standing) -> list[str]:
    measured, all_of_it = len(so_far.measured), len(so_far.measured) + len(so_far.lacking)
    found = [
        f"{measured} of {all_of_it} cells are measured. Times are medians over rounds in which all "
        "ways of a cell took turns, after a warm-up; spread is largest minus smallest over the "
        "median; speedup is end to end, over stock transformers. Random weights of the true shape "
        "time as trained ones do. Compare no figures of different cells, but of one start."
    ]
    if so_far.red:
        found.insert(0, f"WRONG on this device, trust no figure below: {', '.join(so_far.red)}.")
    return found


def _pictures(folder: Path, good: Sequence[Row]) -> dict[str, str]:
    """File -> caption."""
    found: dict[str, str] = {}
    for kind in _SPEEDS:
        own = [row for row in good if row["cell"].startswith(f"{kind}/") and "e2e_ms" in row]
        panels = _panels(own)
        if panels:
            name, what = f"speed-{kind}.png", title_of(kind)
            save_bars(folder / name, panels, "times stock's speed, end to end", what)
            found[name] = f"{what}: end to end over stock; the bars' ends show the spread."
    saved = [
        (_where(row) + f": {row['method']}", row["ideal_saving"], row["achieved_saving"])
        for row in good
        if row["cell"].startswith(("table/", "family/", "long/"))
        and row.get("ideal_saving")
        and row["within_new"] == row["new_tokens"]
    ]
    if saved:
        save_savings(folder / "prefill.png", saved, "Prefill: what arithmetic promises")
        found["prefill.png"] = "How much of the saving in prefill that arithmetic promises arrives."
    entries = [row for row in good if row["cell"].startswith("timeline/")]
    if entries:
        title = f"When which kernel ran: {_where(entries[0])}"
        save_timelines(folder / "timeline.png", entries, title)
        found["timeline.png"] = f"{title}. The profiler slows them down: look at order and gaps."
    return found


def _panels(rows: Sequence[Row]) -> dict[str, Bars]:
    found: dict[str, list[tuple[str, float | None, float | None]]] = {}
    for row in rows:
        speed = row.get("speedup")
        relative = spread(rounds(row))
        half = None if speed is None or relative is None else speed * relative / 2
        title = f"{row['model']}, {row['dtype']}\n{work(row)}"
        found.setdefault(title, []).append((row["method"], speed, half))
    return dict(found)


def _where(row: Row) -> str:
    return f"{row['model']}, {work(row)}"
