"""The table beside the alternatives: its rows, and what is made of them."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import pytest
import torch
from transformers import CompileConfig

from st3.benchmark import alternatives, cold
from st3.benchmark.lab import Lab
from st3.benchmark.tables import tables
from st3.profiling import runs


def test_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows in one cell; torch's compiler is left out of what it would compile, for time."""
    how = partial(CompileConfig, backend="eager", mode=None)
    monkeypatch.setattr(runs, "CompileConfig", how)
    lab = Lab(torch.device("cpu"), torch.float32, tiny=True, openvino="/no/such/python")
    cells = alternatives.cells("small", "float32", [1, 2], [2, 3], rounds=1, compilers=["off"])
    assert [cell.name for cell in cells] == [
        "alternatives/small/float32/1/2", "alternatives/small/float32/2/2",
        "alternatives/small/float32/1/3", "alternatives/small/float32/2/3",
    ]  # fmt: skip
    cache = os.environ.get(cold._CACHE)
    rows = cells[3].measure(lab)
    lab.forget()
    assert os.environ.get(cold._CACHE) == cache
    assert [row["method"] for row in rows] == [
        "stock", "stock + compiled", "none", "st3", "st3 + off",
    ]  # fmt: skip
    for row in rows:
        assert (row["batch_size"], row["new_tokens"], row["rounds"]) == (2, 3, 1)
        assert len(row["notes"]) == 1  # the others went on without it
        assert row["notes"][0].startswith("openvino: /no/such/python cannot be run")
    assert {row["method"] for row in rows if row["compiling_s"] is not None} == {"stock + compiled"}


def row(method: str, batch: int, e2e: float, dtype: str = "float32") -> dict[str, Any]:
    facts = {"precision": "f32", "kv_cache_precision": "f16"} if method == "openvino" else {}
    return {
        "cell": f"alternatives/small/{dtype}/{batch}/64", "model": "small", "dtype": dtype,
        "visual_tokens": 576, "text_tokens": 64, "new_tokens": 64, "batch_size": batch,
        "weights": "random", "method": method, "e2e_ms": e2e,
        "ttft_ms": 1.0, "tpot_ms": 1.0, "tpot_p90_ms": 1.0,
        "tokens_per_second": 1.0, "speedup": 1.0, "compiling_s": 7.5, "peak_memory_bytes": None,
        "tpot_ideal_ms": None if facts else 0.5, "tpot_bound": "bandwidth",
        "tpot_roofline_share": 0.5, "settings": facts,
    }  # fmt: skip


def test_openvino_is_what_the_others_are_held_against() -> None:
    """Each batch's own; a dtype has tables of its own."""
    rows = [
        row("openvino", 1, 300),
        row("st3", 1, 200),
        row("openvino", 8, 900),
        row("st3", 8, 300),
    ]
    rows.append(row("st3", 1, 100, "bfloat16"))
    whole, steps, other, _ = tables(rows)
    assert whole.title.startswith("Beside the alternatives: small, 64 new")
    assert whole.title.endswith("float32")
    assert other.title.endswith("bfloat16")
    last = whole.heads.index("vs openvino")
    assert [line[last] for line in whole.rows] == ["1.00x", "1.50x", "1.00x", "3.00x"]
    assert whole.rows[0][0] == "openvino (f32, KV f16)"
    assert [line[whole.heads.index("compiling, s")] for line in whole.rows] == ["7.5"] * 4
    assert [line[0] for line in steps.rows] == ["st3", "st3"]  # its bytes are not the model's
    assert other.rows[0][last] == "not measured"


def test_a_command_names_no_places() -> None:
    words = ["--output", "/home/me/x", "--openvino=/home/me/python", "--new", "64"]
    shown = alternatives._command(words)
    assert shown.endswith("alternatives --output OUT --openvino=PYTHON --new 64")
