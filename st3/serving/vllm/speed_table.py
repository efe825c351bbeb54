"""The table of what `st3.serving.vllm.measure speed` wrote; it needs no server and no client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from st3.tables import Table


def table(document: Mapping[str, Any]) -> Table:
    """A line for each share, cache and number of callers, `x` of untrimmed."""
    rows = document["speed"]
    whole = {(row["cache"], row["concurrency"]): row for row in rows if row["keep"] == 1}
    lines = []
    for row in sorted(rows, key=lambda row: (row["cache"], row["concurrency"], -row["keep"])):
        base = whole.get((row["cache"], row["concurrency"]))
        times = row["requests_per_second"] / base["requests_per_second"] if base else None
        lines.append(
            (
                row["cache"], str(row["concurrency"]), f"{100 * row['keep']:g} %",
                f"{row['requests_per_second']:.1f}", "-" if times is None else f"{times:.2f}x",
                *(f"{1000 * row[key]:.0f}" for key in ("ttft_p50_s", "ttft_p95_s", "total_p50_s")),
            )
        )  # fmt: skip
    heads = (
        "caches", "callers", "kept", "requests/s", "of untrimmed", "TTFT p50, ms", "TTFT p95, ms",
        "whole p50, ms",
    )  # fmt: skip
    asked = f"{rows[0]['requests']} requests each"
    return Table(f"vLLM on the {document['settings']['model']}, {asked}", heads, tuple(lines))
