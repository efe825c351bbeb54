"""What `st3 sweep` says: how long it will take, and its tables in the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from st3_cli.console import aside, err, out, print_table


def print_sweep(document: dict[str, Any], found: Sequence[Any], folder: Path) -> None:
    """Its tables, what they mean, and where all of it lies."""
    from st3.sweep.results import impossible

    # All cells are in the folder; methods at equal tokens are easier to read.
    shown = found[1:] if document["cells"][0]["budget_tokens"] is not None else found
    for table in shown:
        print_table(table.title, table.heads, table.rows)
    if document.get("beside"):
        err.print(
            f"Beside {document['beside']}, on the same questions: won, where only the other is "
            "right, and lost; p of McNemar's exact test; * sure at 5 % among all comparisons "
            "(Holm).",
            style="dim",
        )
    for sentence in impossible(document["cells"]):
        out.print(sentence)
    err.print(
        "Shares are of untrimmed. same: answers equal to untrimmed; KL: of "
        "next-token distributions, thousandths of a nat; right: answers that are right. * best "
        "of its column, + on the Pareto front of MACs and same. Times are of cells one after "
        "another: st3 profile compares better.",
        style="dim",
    )
    if document["budget"] is not None:
        chosen = document["chosen"]
        if chosen is None:
            err.print(f"No setting holds to {document['budget']}.")
        else:
            err.print(
                f"Fastest within {document['budget']}: {chosen['spec']}  "
                f"(use it: --settings {folder / 'chosen.json'})"
            )
    aside(f"wrote {len(document['files'])} files into {folder}")


def say_how_long(seconds: float, cells: int) -> None:
    """Before the first cell."""
    from st3.units import duration

    many = f"{cells} cells" if cells > 1 else "1 cell"
    aside(f"about {duration(seconds)} for {many}, as long as the untrimmed answers took for each")
