"""A profile's tables, as text: from the JSON document, so that saved ones render the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from st3.units import si

NOT_MEASURED = "not measured"
Cell = Callable[[dict[str, Any]], str]


@dataclass(frozen=True)
class Table:
    """A title, column heads and cells; the first column is text, the others are figures."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """As Markdown."""
        lines = [self.heads, ("---", *("---:" for _ in self.heads[1:])), *self.rows]
        return f"**{self.title}**\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def tables(document: dict[str, Any], *, detail: bool = False) -> list[Table]:
    """Compute, memory and latency for each batch size; with `detail` also the parts of prefill.

    Where something was measured there is a roofline, too.
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
    rows = [row | _spread(document, row) for row in rows]
    measured = any(row["ttft_ms"] is not None for row in rows)
    found = {"Compute of the decoder layers": _COMPUTE}
    if detail:
        found["MACs by part"] = _PARTS
    found["KV cache"] = _MEMORY
    found["Latency in ms"] = _LATENCY if measured else _UNMEASURED
    if measured:
        found["Prefill of the decoder against the roofline, in ms"] = _PREFILL_ROOF
    if any(row["tpot_ideal_ms"] is not None for row in rows):
        found["Decode step against the roofline, in ms"] = _DECODE_ROOF
    made = [_table(f"{title}: {what}", rows, columns) for title, columns in found.items()]
    return made + _operators(document, batch, what)


def _operators(document: dict[str, Any], batch: int, what: str) -> list[Table]:
    """A table a phase: milliseconds by kind of operator."""
    entries = [e for e in document.get("operators", ()) if e["batch_size"] == batch]
    found = []
    for phase in dict.fromkeys(entry["phase"] for entry in entries):
        own = [entry for entry in entries if entry["phase"] == phase]
        lines = [
            (e["method"], *(f"{ms:.3g}" for ms in e["kinds"].values()), f"{e['wall_ms']:.4g}")
            for e in own
        ]
        title = f"Operators of the decoder's {phase}, in ms under the profiler: {what}"
        found.append(Table(title, ("method", *own[0]["kinds"], "together"), tuple(lines)))
    return found


def _spread(document: dict[str, Any], row: dict[str, Any]) -> dict[str, float | None]:
    """(Largest - smallest) / median of the rounds' `e2e_ms`."""
    for sample in document["samples"]:
        if (sample["method"], sample["batch_size"]) == (row["method"], row["batch_size"]):
            times = sample["e2e_ms"]
            return {"e2e_spread": (max(times) - min(times)) / median(times)}
    return {"e2e_spread": None}


def _table(title: str, rows: Sequence[dict[str, Any]], columns: dict[str, Cell]) -> Table:
    for head, key in _ON_A_GPU.items():
        if all(row.get(key) is None for row in rows):
            columns = {name: cell for name, cell in columns.items() if name != head}
    return Table(
        title,
        ("method", *(head.strip() for head in columns)),
        tuple((row["method"], *(cell(row) for cell in columns.values())) for row in rows),
    )


def _figure(key: str, show: Callable[[Any], str]) -> Cell:
    return lambda row: NOT_MEASURED if row[key] is None else show(row[key])


def _count(key: str, unit: str = "") -> Cell:
    return _figure(key, lambda value: si(value, unit))


def _share(key: str) -> Cell:
    return lambda row: "-" if row[key] is None else f"{row[key]:.1%}"


def _ms(key: str) -> Cell:
    def cell(row: dict[str, Any]) -> str:
        value = row[key]
        if value is None:  # one token has no step: there is nothing to measure
            return NOT_MEASURED if row["ttft_ms"] is None else "-"
        return f"{value:.4g}" if value < 1e4 else f"{value:.0f}"

    return cell


def _ms_or_dash(key: str) -> Cell:
    return lambda row: "-" if row.get(key) is None else f"{row[key]:.4g}"


def _times(key: str) -> Cell:
    return _figure(key, lambda value: f"{value:.2f}x")


_COMPUTE: dict[str, Cell] = {
    "prefill MACs": _count("prefill_macs"),
    "prefill FLOPs": _count("prefill_flops"),
    "share": _share("prefill_macs_ratio"),
    "decode MACs": _count("decode_macs"),
    "decode FLOPs": _count("decode_flops"),
    "share ": _share("decode_macs_ratio"),
}
_PARTS: dict[str, Cell] = {
    "decoder, prefill": _count("prefill_macs"),
    "decoder, decode": _count("decode_macs"),
    "vision tower": _count("vision_macs"),
    "projector": _count("projector_macs"),
    "LM head": _count("lm_head_macs"),
}
_MEMORY: dict[str, Cell] = {
    "after prefill": _count("kv_bytes", "B"),
    "share": _share("kv_ratio"),
    "mean": _count("kv_mean_bytes", "B"),
    "share ": _share("kv_mean_ratio"),
    "peak": _count("kv_peak_bytes", "B"),
}
_LATENCY: dict[str, Cell] = {
    "TTFT": _ms("ttft_ms"),
    "vision": _ms("vision_ms"),
    "TPOT": _ms("tpot_ms"),
    "p90": _ms("tpot_p90_ms"),
    "recording": _ms_or_dash("recording_ms"),
    "compiling, s": _ms_or_dash("compiling_s"),
    "e2e": _ms("e2e_ms"),
    "tok/s": _figure("tokens_per_second", lambda value: f"{value:.4g}"),
    "spread": _share("e2e_spread"),
    "speedup": _times("speedup"),
    "vs none": _times("speedup_over_none"),
    "peak memory": _count("peak_memory_bytes", "B"),
}
_ON_A_GPU = {
    "peak memory": "peak_memory_bytes",
    "recording": "recording_ms",
    "compiling, s": "compiling_s",
}
_UNMEASURED = {head: _LATENCY[head] for head in ("TTFT", "TPOT", "e2e", "speedup")}
_PREFILL_ROOF: dict[str, Cell] = {
    "took": _ms("prefill_ms"),
    "ideal": _ms("prefill_ideal_ms"),
    "bound": _figure("prefill_bound", str),
    "reached": _share("prefill_roofline_share"),
    "launch": _ms("prefill_launch_ms"),
    "could save": _share("ideal_saving"),
    "saved": _share("achieved_saving"),
    "of it": _share("saving_share"),
}
_DECODE_ROOF: dict[str, Cell] = {
    "TPOT": _ms("tpot_ms"),
    "ideal": _ms("tpot_ideal_ms"),
    "bound": _figure("tpot_bound", str),
    "reached": _share("tpot_roofline_share"),
    "launch": _ms("step_launch_ms"),
}
