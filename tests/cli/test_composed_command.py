"""`A+B` on the command line, and methods that decide by the picture how many tokens stay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_config

from st3 import demo
from st3.sweep.grid import make_grid, signature

SPEC = "visionzip:keep=50%+st3:tau=64"


def test_an_answer(st3_: Any) -> None:
    asked = ("run", demo.PICTURE, "how many objects are there?", "--json", "--method", SPEC)
    document = json.loads(st3_(*asked).out)
    assert document["method"] == "visionzip+st3"
    assert document["settings"]["before"]["keep"] == 0.5
    assert document["settings"]["inside"]["tau"] == 64
    assert document["selection"]["entered"] == 288
    assert document["visual_tokens"]["kept_per_layer"][:4] == [288, 288, 288, 144]
    other = json.loads(st3_(*asked, "--annealing", "linear").out)
    assert other["settings"]["inside"]["annealing"] == "linear"


def test_one_is_explained(st3_: Any) -> None:
    shown = " ".join(st3_("methods", SPEC, "--model", "7b").out.split())
    for part in ("visionzip+st3", "2412.04467; ST3, arXiv 2412.20105", "st3.tau=64", "fits yes"):
        assert part in shown
    refused = st3_("methods", "st3+visionzip")
    assert refused.code == 2
    assert "the first must drop before the decoder" in refused.err
    assert "A+B is one of these" in " ".join(st3_("methods").out.split())


def test_a_profile_counts_a_composition_and_says_what_it_cannot_count(
    st3_: Any, tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    path.write_text(tiny_config().to_json_string(), encoding="utf-8")
    methods = f"{SPEC},fastv,visionzip:keep=32+fastv,prumerge"
    common = ("profile", "--config", path, "--methods", methods, "--stride", 2, "--text-tokens", 9)
    shown = json.loads(st3_(*common, "--no-latency", "--json").out)
    rows = {row["method"]: row for row in shown["rows"]}
    label = f"{SPEC},stride=2"
    assert list(rows) == ["stock", label, "fastv", "visionzip:keep=32+fastv", "prumerge"]
    assert rows["prumerge"]["prefill_macs"] is None
    assert rows["prumerge"]["kv_bytes"] is None
    assert any("prumerge: how many tokens stay depends" in note for note in shown["notes"])
    # FastV of 32: two layers of ten whole, of 16 the others.
    token = rows["stock"]["kv_bytes"] / (10 * (64 + 9))
    alive = 2 * 32 + 8 * 16 + 10 * 9
    assert rows["visionzip:keep=32+fastv"]["kv_bytes"] == alive * token
    assert rows[label]["settings"]["inside"]["stride"] == 2
    timed = st3_(
        "profile", "--config", path, "--methods", "prumerge", "--text-tokens", 9, "--repeats", 1,
        "--new-tokens", 3, "--batch-size", "1,3", "--json", "--output", tmp_path / "x.md",
    )  # fmt: skip
    _, row, _, many = json.loads(timed.out)["rows"]
    # Rows of a batch may differ: their bytes are those that were measured.
    assert many["kv_bytes"] is not None
    assert many["ttft_ms"] is not None
    assert 0 < many["kv_ratio"] < 1
    entered = (row["kv_bytes"] / token - 10 * 9) / 10
    assert 1 <= entered < 64
    assert entered == int(entered)
    assert 0 < row["prefill_macs_ratio"] < 1
    assert row["prefill_roofline_share"] is not None
    assert "prumerge" in (tmp_path / "x.md").read_text(encoding="utf-8")


def test_a_sweep_has_compositions_and_asks_for_a_number() -> None:
    cells = make_grid(12, [4], [0.1], [9], peers=[SPEC, "dpp:keep=50%+st3:tau=64", "prumerge"])
    one, other, adaptive = cells[1:]
    assert one.final_keep == pytest.approx(0.5 * other.method.schedule(12).keeps[-1])
    assert signature(one, 12) != signature(other, 12)
    assert adaptive.problem is not None
    assert "give keep a number" in adaptive.problem
