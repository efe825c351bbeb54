"""The table of what `st3.serving.http.measure` wrote; it needs no server and no client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from st3.tables import Table


def table(document: Mapping[str, Any]) -> Table:
    """A line a batch size, `x` of the first."""
    rows, settings = document["serving"], document["settings"]
    lines = []
    for row in rows:
        times = row["requests_per_second"] / rows[0]["requests_per_second"]
        lines.append(
            (
                str(row["batch_size"]),
                f"{row['requests_per_second']:.3g}",
                f"{times:.2f}x",
                "-" if row["spread"] is None else f"{row['spread']:.0%}",
                f"{row['batch']:.1f}",
                *(f"{1000 * row[key]:.0f}" for key in ("ttft_p50_s", "ttft_p95_s", "total_p50_s")),
                f"{row['same']:.0%}",
            )
        )
    asked = f"{settings['callers']} callers, {settings['requests']} pictures a round"
    heads = (
        "`--batch-size`", "pictures/s", f"of {rows[0]['batch_size']}", "spread",
        "answered together", "TTFT p50, ms", "TTFT p95, ms", "whole p50, ms", "same answers",
    )  # fmt: skip
    return Table(f"st3 serve on the {settings['model']}, {asked}", heads, tuple(lines))
