"""Columns of the suite's tables: what stands above each, and how its figure is written."""

from __future__ import annotations

from st3.tables import Cell, count, digits, figure, milliseconds, or_dash, share, times
from st3.units import si

BATCH: dict[str, Cell] = {"batch": figure("batch_size", str)}
TIMES: dict[str, Cell] = {
    "TTFT, ms": milliseconds("ttft_ms"),
    "TPOT, ms": milliseconds("tpot_ms"),
    "e2e, ms": milliseconds("e2e_ms"),
    "tok/s": figure("tokens_per_second", digits),
    "spread": share("e2e_spread"),
    "speedup": times("speedup"),
    "first, ms": or_dash("first_e2e_ms"),
    "recording, ms": or_dash("recording_ms"),
    "compiling, s": or_dash("compiling_s"),
    "peak memory": count("peak_memory_bytes", "B"),
}
PEERS: dict[str, Cell] = {
    "TTFT, ms": milliseconds("ttft_ms"),
    "TPOT, ms": milliseconds("tpot_ms"),
    "e2e, ms": milliseconds("e2e_ms"),
    "spread": share("e2e_spread"),
    "speedup": times("speedup"),
    "memory of the process": lambda row: (
        si(row["peak_process_bytes"], "B") if row.get("peak_process_bytes") else "-"
    ),
    "ready in, s": or_dash("ready_s"),
    "answers kept": share("kept"),
}
BESIDE: dict[str, Cell] = {"vs openvino": times("over_openvino")}
PREFILL: dict[str, Cell] = {
    "took, ms": milliseconds("prefill_ms"),
    "ideal, ms": milliseconds("prefill_ideal_ms"),
    "reached": share("prefill_roofline_share"),
    "could save": share("ideal_saving"),
    "saved": share("achieved_saving"),
    "of it": share("saving_share"),
    "operations": or_dash("prefill_launches"),
}
STEP: dict[str, Cell] = {
    "TPOT, ms": milliseconds("tpot_ms"),
    "p90, ms": milliseconds("tpot_p90_ms"),
    "ideal, ms": milliseconds("tpot_ideal_ms"),
    "bound": figure("tpot_bound", str),
    "reached": share("tpot_roofline_share"),
}
KV: dict[str, Cell] = {
    "after prefill": count("kv_bytes", "B"),
    "share": share("kv_ratio"),
    "mean": count("kv_mean_bytes", "B"),
    "share ": share("kv_mean_ratio"),
    "peak": count("kv_peak_bytes", "B"),
}
FITS: dict[str, Cell] = {
    "budget": count("budget_bytes", "B"),
    "tok/s": figure("tokens_per_second", digits),
    "e2e, ms": milliseconds("e2e_ms"),
    "peak memory": count("peak_memory_bytes", "B"),
}
