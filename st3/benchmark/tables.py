"""The suite's rows as tables: those that were measured, from as many starts as it took."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from st3.benchmark.columns import BATCH, BESIDE, FITS, KV, PEERS, PREFILL, STEP, TIMES
from st3.machine import made_with
from st3.profiling.openvino import OPENVINO
from st3.profiling.tables import operator_tables
from st3.tables import NOT_MEASURED, Table, digits, spread, table
from st3.units import si

Row = dict[str, Any]


def tables(rows: Sequence[Row]) -> list[Table]:
    """All tables for which there are rows; failed, skipped and unfinished cells have none."""
    good = [row for row in rows if _measured(row)]
    found: list[Table] = []
    for kind, title in _KINDS.items():
        own = [row for row in good if row["cell"].partition("/")[0] == kind]
        if kind in _WHOLE:
            found += _WHOLE[kind](own)
            continue
        for dtype, work in dict.fromkeys((row["dtype"], _work(row, kind)) for row in own):
            some = [r for r in own if (r["dtype"], _work(r, kind)) == (dtype, work)]
            found += _of_kind(kind, title, work, some)
    return found


def markdown(rows: Sequence[Row]) -> str:
    """All tables, and below them how they were made."""
    found = tables(rows)
    if not found:
        return "Nothing has been measured.\n"
    return "\n".join([*(table.markdown() for table in found), made(rows) + "\n"])


def title_of(kind: str) -> str:
    """What the cells of a kind are about, in words."""
    return _KINDS.get(kind) or kind


def work(row: Row) -> str:
    """What a row's cell was asked for."""
    return f"{row['visual_tokens']} visual, batch {row['batch_size']}, {row['new_tokens']} new"


def rounds(row: Row) -> list[float]:
    """What each round took end to end, ms; none where nothing was timed."""
    return list(row.get("samples", {}).get("e2e_ms", []))


def made(rows: Sequence[Row]) -> str:
    """Date, machine, commit and command of every start that measured something."""
    starts = {row["start"]: row for row in rows if "start" in row}
    used = sorted({row["of_start"] for row in rows if _measured(row)})
    commits = (f" At commit {starts[n]['settings']['commit']}." for n in used)
    return " ".join(made_with(starts[n]) + commit for n, commit in zip(used, commits, strict=True))


def _measured(row: Row) -> bool:
    return ("model" in row or "macs_per_second" in row) and "interrupted" not in row


def _of_kind(kind: str, title: str, work: str, rows: list[Row]) -> Iterable[Table]:
    if kind == "operators":
        batches = dict.fromkeys(row["batch_size"] for row in rows)
        return [
            found
            for batch in batches
            for found in operator_tables(
                [row for row in rows if row["batch_size"] == batch],
                f"{work}, batch {batch}, {_common(rows)}",
            )
        ]
    rows = [row | {"e2e_spread": spread(_rounds(row))} for row in rows]
    for row in rows:
        if row.get("within_new", row["new_tokens"]) > row["new_tokens"]:
            row["peak_memory_bytes"] = None  # the longer answer's
    what = f"{work}, {_common(rows)}"
    if kind == "memory":
        return [table(f"{title}: {what}", rows, BATCH | FITS)]
    if kind == "alternatives":
        rows = _beside_openvino(rows)
        steps = [row for row in rows if row["tpot_ideal_ms"] is not None]
        return [
            table(f"{title}: {what}", rows, BATCH | TIMES | BESIDE),
            table(f"Decode step beside the alternatives: {what}", steps, BATCH | STEP),
        ]
    if kind == "peers":
        lines = tuple((row["method"], row["problem"]) for row in rows if "problem" in row)
        lost = [Table(f"{NOT_MEASURED.capitalize()}: {what}", ("method", "why"), lines)]
        return [table(f"{title}: {what}", rows, PEERS), *(lost if lines else [])]
    found = [table(f"{title}: {what}", rows, BATCH | TIMES)]
    if kind in ("table", "family"):
        found += [
            table(f"Prefill: {what}", rows, BATCH | PREFILL),
            table(f"Decode step: {what}", rows, BATCH | STEP),
            table(f"KV cache: {what}", rows, BATCH | KV),
        ]
    return found


def _beside_openvino(rows: list[Row]) -> list[Row]:
    """Rows with how often they are as fast as OpenVINO's, which says in what it computes."""
    theirs = {row["batch_size"]: row["e2e_ms"] for row in rows if row["method"] == OPENVINO}
    found = []
    for row in rows:
        other = theirs.get(row["batch_size"])
        more = {"over_openvino": None if other is None else other / row["e2e_ms"]}
        if row["method"] == OPENVINO:
            facts = row["settings"]
            kinds = f"{facts['precision']}, KV {facts['kv_cache_precision']}"
            more |= {"method": f"{OPENVINO} ({kinds})"}
        found.append(row | more)
    return found


def _work(row: Row, kind: str) -> str:
    """What the rows of one table have in common."""
    sizes = ("long", "family", "recorded")
    pictures = f", {row['visual_tokens']} visual tokens" if kind in sizes else ""
    return f"{row['model']}{pictures}, {row['new_tokens']} new"


def _common(rows: list[Row]) -> str:
    row = rows[0]
    return (
        f"{row['weights']} weights, {row['visual_tokens']} visual + {row['text_tokens']} text "
        f"tokens, {row['dtype']}"
    )


def _rounds(row: Row) -> list[float]:
    found: list[float] = row.get("samples", {}).get("e2e_ms", [])
    return found


def _exact(rows: list[Row]) -> list[Table]:
    """What stock and the oracles say, a table a dtype."""
    heads = (
        "model and method", "verdict", "beside", "logits, prefill", "logits, steps", "allowed",
        "ties",
    )  # fmt: skip
    found = []
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        own = [row for row in rows if row["dtype"] == dtype]
        lines = tuple(
            (
                f"{row['model']}: {row['method']}",
                row["verdict"],
                row["reference"] or row["why"] or "-",
                *(
                    "-" if row[key] is None else f"{row[key]:.1e}"
                    for key in ("prefill_difference", "step_difference", "allowed_difference")
                ),
                "-" if row["ties"] is None else str(row["ties"]),
            )
            for row in own
        )
        title = f"Correct on this device: {dtype}, bound {own[0]['bound']:g} of the largest logit"
        found.append(Table(title, heads, lines))
    return found


def _ceilings(rows: list[Row]) -> list[Table]:
    """The last ones that were measured."""
    lines = [
        (
            ("a matrix product", si(2 * row["macs_per_second"], "FLOP/s")),
            ("a copy, read and written", si(row["bytes_per_second"], "B/s")),
            ("starting an operation", f"{1e6 * row['launch_seconds']:.3g} us"),
        )
        for row in rows
    ]
    return [Table("At best on this device", ("what", "rate"), last) for last in lines[-1:]]


def _timeline(rows: list[Row]) -> list[Table]:
    """How long kernels ran, by kind, and how long none did."""
    if not rows:
        return []
    kinds = sorted({kind for row in rows for _, _, kind in row["events"]})
    lines = []
    for row in rows:
        spent = dict.fromkeys(kinds, 0.0)
        for _, took, kind in row["events"]:
            spent[kind] += took
        lines.append(
            (
                f"{row['method']}, {row['phase']}",
                *(digits(took, 3) for took in spent.values()),
                digits(row["span_ms"]),
                f"{row['idle_share']:.1%}",
                str(len(row["events"])),
            )
        )
    title = f"Kernels, in ms under the profiler: {rows[0]['model']}, {_common(rows)}"
    heads = ("method and pass", *kinds, "from first to last", "none runs", "kernels")
    return [Table(title, heads, tuple(lines))]


_WHOLE: dict[str, Callable[[list[Row]], list[Table]]] = {
    "exact": _exact,
    "ceilings": _ceilings,
    "timeline": _timeline,
}
_KINDS = {
    "exact": "",
    "ceilings": "",
    "table": "End to end",
    "alternatives": "Beside the alternatives",
    "peers": "Beside the peers' own code",
    "static": "Against stock's compiled static cache",
    "family": "Families",
    "recorded": "Families, steps recorded",
    "memory": "Throughput in so much memory",
    "long": "Long prompts",
    "methods": "Other methods",
    "cudnn": "With cuDNN's attention allowed",
    "operators": "",
    "timeline": "",
}
