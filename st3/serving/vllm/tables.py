"""Tables of what `st3.serving.vllm.measure` wrote; they need no server, no client and no vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from st3.methods.selecting import POSITIONS
from st3.tables import NOT_MEASURED, Table


def tables(document: Mapping[str, Any]) -> list[Table]:
    """Those of a document; none of one that has neither speed nor accuracy."""
    kinds = {"speed": _speed, "accuracy": _accuracy}
    return [make(document) for key, make in kinds.items() if key in document]


def _speed(document: Mapping[str, Any]) -> Table:
    """A line for each share, cache and number of callers, `x` of untrimmed."""
    rows = document["speed"]
    whole = {(row["cache"], row["concurrency"]): row for row in rows if row["keep"] == 1}
    lines = []
    for row in sorted(rows, key=lambda row: (row["cache"], row["concurrency"], -row["keep"])):
        base = whole.get((row["cache"], row["concurrency"]))
        times = row["requests_per_second"] / base["requests_per_second"] if base else None
        lines.append(
            (
                row["cache"], str(row["concurrency"]), _share(row["keep"]),
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


def _accuracy(document: Mapping[str, Any]) -> Table:
    """A line for each share and method, a column for each way to count positions.

    Untrimmed, all positions are the original ones, and are those of the trimmed prompt.
    """
    rows = document["accuracy"]
    found: dict[tuple[float, str], dict[str, str]] = {}
    for row in rows:
        whole = row["keep"] == 1
        text = f"{_percent(row['right'] / row['asked'])} ({_percent(row['low'])}-"
        text += f"{_percent(row['high'])})"
        line = found.setdefault((-row["keep"], "untrimmed" if whole else f"`{row['method']}`"), {})
        line |= dict.fromkeys(POSITIONS, text) if whole else {row["positions"]: text}
    lines = [
        (_share(-keep), method, *(line.get(one, NOT_MEASURED) for one in POSITIONS))
        for (keep, method), line in sorted(found.items(), key=lambda item: item[0][0])
    ]
    title = (
        f"Exact match in percent in vLLM on the {document['settings']['model']}, "
        f"{rows[0]['asked']} questions"
    )
    heads = ("kept", "method", *(f"{one} positions" for one in POSITIONS))
    return Table(title, heads, tuple(lines))


def _share(keep: float) -> str:
    return f"{100 * keep:g} %"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
