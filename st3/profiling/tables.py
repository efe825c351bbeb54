"""A profile's tables, as text: from the JSON document, so that saved ones render the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from st3.tables import (
    Cell,
    Table,
    count,
    digits,
    figure,
    milliseconds,
    or_dash,
    share,
    spread,
    table,
    times,
)
from st3.units import si


def tables(document: dict[str, Any], *, detail: bool = False) -> list[Table]:
    """Compute, memory and latency for each batch size; with `detail` also the parts of prefill.

    Where something was measured there are latency and a roofline, too.
    """
    return [
        table
        for batch in dict.fromkeys(row["batch_size"] for row in document["rows"])
        for table in _of_batch(document, batch, detail)
    ]


def _of_batch(document: dict[str, Any], batch: int, detail: bool) -> list[Table]:
    rows = [row for row in document["rows"] if row["batch_size"] == batch]
    weights = {"random": ", random weights", "pretrained": "", None: ""}[document["weights"]]
    settings = document["settings"]
    what = (
        f"{document['model']}{weights}, batch {batch}, {settings['visual_tokens']} visual + "
        f"{settings['text_tokens']} text tokens, {settings['new_tokens']} new, "
        f"{document['machine']['dtype']}"
    )
    if settings.get("quantization"):  # reports of before have none
        what += f", weights in {settings['quantization']}"
    rows = [row | _spread(document, row) for row in rows]
    measured = any(row["ttft_ms"] is not None for row in rows)
    found = {"Compute of the decoder layers": (rows, _COMPUTE)}
    if detail:
        found["MACs by part"] = rows, _PARTS
    found["KV cache"] = rows, _MEMORY
    if measured:  # else a note of the report says why not
        asked = any(row.get("selection_ms") is not None for row in rows)  # older reports: not
        columns = {head: cell for head, cell in _LATENCY.items() if asked or head != "choosing"}
        found["Latency in ms"] = rows, columns
        # Of OpenVINO's own pipeline only the tokens are seen.
        some = [row for row in rows if row["prefill_ms"] is not None]
        found["Prefill of the decoder against the roofline, in ms"] = some, _PREFILL_ROOF
    some = [row for row in rows if row["tpot_ideal_ms"] is not None]
    if some:
        found["Decode step against the roofline, in ms"] = some, _DECODE_ROOF
    made = [table(f"{title}: {what}", own, columns) for title, (own, columns) in found.items()]
    entries = [e for e in document.get("operators", ()) if e["batch_size"] == batch]
    return made + _by_device(rows, what) + operator_tables(entries, what)


def _by_device(rows: Sequence[dict[str, Any]], what: str) -> list[Table]:
    """Bytes where a device map spreads the model; nothing without one, or in older reports."""
    weights = rows[0].get("weights_bytes_by_device")
    if not weights:
        return []
    devices = list(
        dict.fromkeys([*weights, *(d for row in rows for d in row["kv_bytes_by_device"])])
    )
    lines = [("weights", *(si(weights.get(device, 0), "B") for device in devices))]
    for row in rows:
        held = row["kv_bytes_by_device"]
        lines.append((f"KV, {row['method']}", *(si(held.get(x, 0), "B") for x in devices)))
    title = f"Bytes by device, predicted; KV cache after prefill: {what}"
    return [Table(title, ("bytes of", *devices), tuple(lines))]


def operator_tables(entries: Sequence[dict[str, Any]], what: str) -> list[Table]:
    """A table a phase: milliseconds by kind of operator, of entries for one batch size.

    Args:
        entries: of `st3.profiling.operators.operators`.
        what: was watched, for the titles.
    """
    found = []
    for phase in dict.fromkeys(entry["phase"] for entry in entries):
        own = [entry for entry in entries if entry["phase"] == phase]
        kernels = ("kernels",) if "kernels_run" in own[0] else ()
        lines = [
            (e["method"], *(digits(ms, 3) for ms in e["kinds"].values()), digits(e["wall_ms"]),
             *(f"{e['kernels_run']:.0f}" for _ in kernels))
            for e in own
        ]  # fmt: skip
        title = f"Operators of the decoder's {phase}, in ms under the profiler: {what}"
        found.append(Table(title, ("method", *own[0]["kinds"], "together", *kernels), tuple(lines)))
    return found


def _spread(document: dict[str, Any], row: dict[str, Any]) -> dict[str, float | None]:
    for sample in document["samples"]:
        if (sample["method"], sample["batch_size"]) == (row["method"], row["batch_size"]):
            return {"e2e_spread": spread(sample["e2e_ms"])}
    return {"e2e_spread": None}


def _vs_none(row: dict[str, Any]) -> str:
    """A dash where `none` was not among the methods."""
    if row["speedup_over_none"] is None and row["ttft_ms"] is not None:
        return "-"
    return times("speedup_over_none")(row)


_COMPUTE: dict[str, Cell] = {
    "prefill MACs": count("prefill_macs"),
    "prefill FLOPs": count("prefill_flops"),
    "share": share("prefill_macs_ratio"),
    "decode MACs": count("decode_macs"),
    "decode FLOPs": count("decode_flops"),
    "share ": share("decode_macs_ratio"),
}
_PARTS: dict[str, Cell] = {
    "decoder, prefill": count("prefill_macs"),
    "decoder, decode": count("decode_macs"),
    "vision tower": count("vision_macs"),
    "projector": count("projector_macs"),
    "LM head": count("lm_head_macs"),
}
_MEMORY: dict[str, Cell] = {
    "after prefill": count("kv_bytes", "B"),
    "share": share("kv_ratio"),
    "mean": count("kv_mean_bytes", "B"),
    "share ": share("kv_mean_ratio"),
    "peak": count("kv_peak_bytes", "B"),
}
_LATENCY: dict[str, Cell] = {
    "TTFT": milliseconds("ttft_ms"),
    "vision": milliseconds("vision_ms"),
    "choosing": or_dash("selection_ms"),
    "TPOT": milliseconds("tpot_ms"),
    "p90": milliseconds("tpot_p90_ms"),
    "e2e": milliseconds("e2e_ms"),
    "recording, ms": or_dash("recording_ms"),
    "compiling, s": or_dash("compiling_s"),
    "tok/s": figure("tokens_per_second", digits),
    "spread": share("e2e_spread"),
    "speedup": times("speedup"),
    "vs none": _vs_none,
    "peak memory": count("peak_memory_bytes", "B"),
}
_PREFILL_ROOF: dict[str, Cell] = {
    "took": milliseconds("prefill_ms"),
    "ideal": milliseconds("prefill_ideal_ms"),
    "bound": figure("prefill_bound", str),
    "reached": share("prefill_roofline_share"),
    "launch": milliseconds("prefill_launch_ms"),
    "could save": share("ideal_saving"),
    "saved": share("achieved_saving"),
    "of it": share("saving_share"),
}
_DECODE_ROOF: dict[str, Cell] = {
    "TPOT": milliseconds("tpot_ms"),
    "ideal": milliseconds("tpot_ideal_ms"),
    "bound": figure("tpot_bound", str),
    "reached": share("tpot_roofline_share"),
    "launch": milliseconds("step_launch_ms"),
}
