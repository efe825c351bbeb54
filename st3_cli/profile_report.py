"""What `st3 profile` prints and saves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from st3.files import plainly, write_text
from st3_cli.console import err, print_table

if TYPE_CHECKING:
    from st3.profiling import Report


def save(path: Path, report: Report) -> None:
    """As JSON, CSV or Markdown, by the name."""
    text = {".json": report.json, ".csv": report.csv, ".md": report.markdown}[path.suffix.lower()]()
    with plainly("write", path):
        write_text(path, text)


def show(report: Report, detail: bool) -> None:
    """The tables on stdout, and what a reader must know on stderr."""
    for table in report.tables(detail=detail):
        print_table(table.title, table.heads, table.rows)
    for note in report.notes:
        err.print(note)
    ceilings = report.machine.get("ceilings")
    if ceilings is not None:
        err.print(
            f"Device: {2 * ceilings['macs_per_second'] / 1e12:.3g} TFLOP/s in a matrix "
            f"product, {ceilings['bytes_per_second'] / 1e9:.3g} GB/s in a copy, "
            f"{1e6 * ceilings['launch_seconds']:.2g} us to launch an operation.",
            style="dim",
        )
    explained = "1 MAC (multiply-accumulate) = 2 FLOPs. Shares are of untrimmed."
    if report.weights is not None:
        explained += (
            " Times are medians; spread is largest minus smallest over the median of the rounds; "
            "speedup is end to end, over stock."
        )
    err.print(explained, style="dim")
