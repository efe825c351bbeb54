"""The one table of the first page, out of the same files as the long ones: `make_tables.py` asks.

Beside stock and ST3 stands *none*: our own path, run the same way, with nothing trimmed. What it
gains over stock is not trimming's.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from st3.files import read_rows
from st3.tables import Table
from st3.units import si

BENCHMARKS = Path(__file__).parent / "benchmarks"
TITLE = "LLaVA-1.5-7B, a picture (576 visual tokens) and 64 text tokens, unless another is named"


@dataclass(frozen=True)
class _Line:
    """Where a figure of three methods lies, and how it is shown."""

    what: str
    file: str
    key: str
    show: Callable[[float], str]
    more_is_better: bool = False
    share: bool = False
    graphs: bool = False
    compiled: bool = False
    cell: str = ""
    new: int | None = None


def _ms(value: float) -> str:
    return f"{value:.4g} ms"


_LINES = (
    _Line("compute of prefill, counted", "profile-7b.json", "prefill_macs",
          lambda x: si(x, "MAC"), share=True),
    _Line("KV cache after prefill, counted", "profile-7b.json", "kv_bytes",
          lambda x: si(x, "B"), share=True),
    _Line("first token, batch 8, H200, recorded", "gpu-h200.jsonl", "ttft_ms", _ms,
          graphs=True, cell="table/7b/8", new=64),
    _Line("64 tokens, batch 1, H200, recorded", "gpu-h200.jsonl", "e2e_ms", _ms,
          graphs=True, cell="table/7b/1", new=64),
    _Line("the same, stock's by its static cache, all compiled", "gpu-h200.jsonl", "e2e_ms", _ms,
          compiled=True, cell="static/7b/1", new=64),
    _Line("64 tokens, batch 32, H200, recorded", "gpu-h200.jsonl", "e2e_ms", _ms,
          graphs=True, cell="table/7b/32", new=64),
    _Line("tokens/s, largest batch in 80 GB, H100, recorded", "gpu-h100-llava.jsonl",
          "tokens_per_second", lambda x: f"{x:.4g}", more_is_better=True, graphs=True,
          cell="memory/7b/80", new=64),
    _Line("decoder's prefill, Qwen2.5-VL-7B, 16,320 visual tokens, H100", "gpu-h100.jsonl",
          "prefill_ms", _ms, cell="family/qwen2.5-vl-7b/4928x2773", new=64),
    _Line("first token of the same, with its vision tower", "gpu-h100.jsonl", "ttft_ms",
          _ms, cell="family/qwen2.5-vl-7b/4928x2773", new=64),
    _Line("first token, shape `small`, 2 CPU cores", "profile-small-cpu.json", "ttft_ms", _ms),
)  # fmt: skip


def table() -> Table:
    """Stock, ST3, how they compare, and our path untrimmed."""
    return Table(TITLE, ("", "stock", "st3", "", "none"), tuple(map(_row, _LINES)))


def _row(line: _Line) -> tuple[str, ...]:
    stock, trimmed, none = (_value(line, method) for method in ("stock", "st3", "none"))
    assert stock is not None, line
    assert trimmed is not None, line
    ratio = trimmed / stock if line.more_is_better else stock / trimmed
    told = f"{trimmed / stock:.1%}" if line.share else f"**{ratio:.2f}x**"
    untrimmed = "not measured" if none is None else line.show(none)
    return line.what, line.show(stock), line.show(trimmed), told, untrimmed


def _value(line: _Line, method: str) -> float | None:
    """A method's figure; None where nobody measured it."""
    label = method
    if line.compiled:
        label = "stock, static + compiled" if method == "stock" else f"{method} + graphs + compiled"
    elif line.graphs and method != "stock":
        label = f"{method} + graphs"
    found = [row[line.key] for row in _rows(line) if row.get("method") == label]
    assert len(found) <= 1, (line, method, found)
    return found[0] if found else None


def _rows(line: _Line) -> list[dict[str, Any]]:
    path = BENCHMARKS / line.file
    if path.suffix == ".json":
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return list(document["rows"])
    return [
        row
        for row in read_rows(path)
        if row.get("cell") == line.cell and row.get("new_tokens") == line.new
    ]
