"""What is written of measurements in vLLM, and how one goes on: without vLLM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from st3.serving.vllm import measure
from st3.serving.vllm.tables import tables

SETTINGS = {"vllm": "0.32.0", "eager": True, "model": "demo", "command": "python -m ..."}


def _row(right: int, **more: Any) -> dict[str, Any]:
    return {"asked": 120, "right": right, "low": right / 240, "high": 1.0, "lost": 0} | more


def test_accuracy_has_a_line_a_share_and_method() -> None:
    rows = [
        _row(60, keep=0.25, method="dpp", positions="compact"),
        _row(90, keep=0.5, method="norm", positions="original"),
        _row(102, keep=0.25, method="dpp", positions="original"),
        _row(120, keep=1),
    ]
    (table,) = tables({"accuracy": rows, "settings": SETTINGS})
    assert table.title == "Exact match in percent in vLLM on the demo, 120 questions"
    assert table.heads == ("kept", "method", "original positions", "compact positions")
    assert table.rows == (
        ("100 %", "untrimmed", "100.0 (50.0-100.0)", "100.0 (50.0-100.0)"),
        ("50 %", "`norm`", "75.0 (37.5-100.0)", "not measured"),
        ("25 %", "`dpp`", "85.0 (42.5-100.0)", "50.0 (25.0-100.0)"),
    )


def test_speed_is_told_against_untrimmed_in_the_same_case() -> None:
    times: dict[str, Any] = {
        "requests": 8,
        "ttft_p50_s": 0.1,
        "ttft_p95_s": 0.2,
        "total_p50_s": 0.3,
    }
    rows = [
        {"keep": keep, "cache": cache, "concurrency": 8, "requests_per_second": rate} | times
        for keep, cache, rate in ((0.25, "cold", 6), (1, "cold", 4), (0.25, "hot", 5))
    ]
    (table,) = tables({"speed": rows, "settings": SETTINGS})
    assert [line[2:5] for line in table.rows] == [
        ("100 %", "4.0", "1.00x"), ("25 %", "6.0", "1.50x"), ("25 %", "5.0", "-"),
    ]  # fmt: skip


def test_a_measurement_goes_on_in_a_file_of_its_own(tmp_path: Path) -> None:
    path, fresh = tmp_path / "accuracy.json", {"accuracy": [], "settings": SETTINGS}
    assert measure.begun(path, fresh) is measure.begun(None, fresh) is fresh
    there = {"accuracy": [_row(1, keep=1)], "settings": SETTINGS | {"date": "2026-01-01"}}
    path.write_text(json.dumps(there), encoding="utf-8")
    assert measure.begun(path, fresh) == there
    for name in SETTINGS:
        other = fresh | {"settings": SETTINGS | {name: "another"}}
        with pytest.raises(ValueError, match=f"of another run, {name} .*: give another --output"):
            measure.begun(path, other)


def test_each_setting_is_measured_once() -> None:
    found = [*measure.grid("1,0.5", "dpp,norm", "original,compact", measure.What.accuracy)]
    assert found[0] is None  # untrimmed, whatever the method
    assert found[1:] == [
        {"keep": 0.5, "method": method, "positions": positions}
        for method in ("dpp", "norm")
        for positions in ("original", "compact")
    ]
    assert len([*measure.grid("1,0.5", "dpp", "original,compact", measure.What.speed)]) == 2
