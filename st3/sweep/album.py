"""The files of a sweep besides its cells: JSON, CSV, Markdown, pictures, the chosen settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from st3.files import write_text
from st3.machine import made_with
from st3.plots.leaderboard import save_leaderboard
from st3.plots.sweep import save_front, save_heatmaps, save_taus
from st3.sweep import pairs
from st3.sweep.leaderboard import board, bounds, judged_by, leaderboard
from st3.sweep.results import measured, table, to_csv
from st3.tables import Table


def save_sweep(folder: Path, document: dict[str, Any], layers: int) -> list[str]:
    """Write everything; returns the names of the files and puts them into `document`.

    `chosen` in the document, if there is one, becomes `chosen.json`, which `--settings` takes.
    """
    rows = document["cells"]
    pictures = _pictures(folder, document, layers)
    names = ["sweep.json", "sweep.csv", "sweep.md", *pictures]
    if document.get("chosen"):
        names.append("chosen.json")
        chosen = {"method": document["chosen"]["spec"], "budget": document["budget"]}
        write_text(folder / "chosen.json", json.dumps(chosen, indent=2) + "\n")
    document["files"] = names
    write_text(folder / "sweep.csv", to_csv(rows))
    found = tables_of(document)
    text = "\n".join(each.markdown() for each in found)
    write_text(folder / "sweep.md", f"{text}\n{made_with(document)}\n")
    write_text(folder / "sweep.json", json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    return names


def tables_of(document: dict[str, Any]) -> list[Table]:
    """All cells; methods at equal tokens, if there are any; and pairs, if they were asked for."""
    found = [table(document)]
    if document.get("beside"):
        found.append(pairs.table(document))
    if any(row.get("budget_tokens") is not None for row in document["cells"]):
        found.append(leaderboard(document))
    return found


def _pictures(folder: Path, document: dict[str, Any], layers: int) -> list[str]:
    rows, front, name = document["cells"], document["pareto"], document["settings"]["model"]
    found = []
    grid = [row for row in rows if row["stride"] is not None and row["ratio"] is not None]
    taus = list(dict.fromkeys(row["tau"] for row in grid))
    for tau in taus:
        some = [row for row in grid if row["tau"] == tau]
        if any("fidelity" in row for row in some):
            file = "heatmaps.png" if len(taus) == 1 else f"heatmaps-tau-{tau or 'none'}.png"
            save_heatmaps(folder / file, some, layers, f"{name}: st3, tau = {tau or 'none'}")
            found.append(file)
    if measured(rows):
        save_front(folder / "pareto.png", measured(rows), front, f"{name}: fidelity and compute")
        found.append("pareto.png")
    annealed = [row for row in grid if "fidelity" in row]
    if len({row["tau"] for row in annealed}) > 1:
        save_taus(folder / "tau.png", annealed, f"{name}: annealing")
        found.append("tau.png")
    if any(row["budget_tokens"] is not None for row in measured(rows)):
        save_board(folder / "leaderboard.png", document)
        found.append("leaderboard.png")
    return found


def save_board(path: Path, document: dict[str, Any]) -> None:
    """The picture of methods at equal tokens."""
    key, word = judged_by(document)
    base, lines = document["baseline"], {}
    found = board(document["cells"])
    for name, *_ in leaderboard(document).rows:
        lines[name] = {
            budget: (row["prefill_macs_ratio"], row[key], *bounds(row, key, base["questions"]))
            for budget, row in found[name].items()
        }
    lines = {name: points for name, points in lines.items() if points}
    title = f"{document['settings']['model']}: methods at equal visual tokens a layer"
    save_leaderboard(path, lines, base.get(key, 1.0), f"{word} answers", title)
