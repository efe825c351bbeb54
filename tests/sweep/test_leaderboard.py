"""Methods at equal tokens: the cells, the table and its picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import st3
from st3.inference.configs import find_config
from st3.methods import make_method
from st3.proportion import interval
from st3.sweep.album import save_sweep
from st3.sweep.equal import all_methods, equal_cells
from st3.sweep.leaderboard import board, leaderboard


@pytest.fixture(scope="module")
def config() -> Any:
    return find_config("demo")


def test_cells_leave_as_many_tokens_as_they_say(config: Any) -> None:
    layers = config.get_text_config().num_hidden_layers
    cells = equal_cells(config, ["divprune", "fastv:k=2", "vtw", "vta"], [128, 192], (336, 336))
    assert [cell.budget for cell in cells] == [128] * 4 + [192] * 4
    assert [cell.spec for cell in cells if cell.problem] == ["vta", "vta"]
    for cell in cells:
        if cell.problem:
            assert "has no setting" in cell.problem
            continue
        schedule = make_method(cell.spec).schedule(layers)
        mean = sum(schedule.count(layer, 576) for layer in range(1, layers + 1)) / layers
        slack = 576 / layers / 2 if "vtw" in cell.spec else 1
        assert abs(mean - (cell.budget or 0)) <= slack
    assert cells[1].spec.startswith("fastv:k=2,r=0.")


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ("divprune:keep=50%+st3", "+st3:prune_ratio=0."),
        ("dpp:keep=50%+fastv:k=3", "+fastv:k=3,r=0."),
    ],
)
def test_a_composition_has_the_dial_of_its_second(config: Any, spec: str, word: str) -> None:
    """What its first lets in stays; the table calls it as it was asked for."""
    layers = config.get_text_config().num_hidden_layers
    (cell,) = equal_cells(config, [spec], [128], (336, 336))
    assert cell.problem is None
    assert word in cell.spec
    schedule = make_method(cell.spec).schedule(layers)
    assert schedule.count(1, 576) == 288
    mean = sum(schedule.count(layer, 576) for layer in range(1, layers + 1)) / layers
    assert abs(mean - 128) <= 1
    assert [*board([_row(cell.spec, 128, 0.9, 0.4)])] == [spec]


def test_a_published_setting_of_that_name_is_as_good_as_a_dial(config: Any) -> None:
    (cell,) = equal_cells(config, ["sparsevlm"], [192], (336, 336))
    assert (cell.spec, cell.problem) == ("sparsevlm:192", None)
    (cell,) = equal_cells(config, ["sparsevlm:recycle=no"], [192], (336, 336))
    assert (cell.spec, cell.problem) == ("sparsevlm:192,recycle=no", None)
    (cell,) = equal_cells(config, ["sparsevlm"], [100], (336, 336))
    assert cell.problem is not None
    (cell,) = equal_cells(config, ["sparsevlm"], [64], (336, 336))
    assert "sparsevlm:64 is called so, and leaves" in (cell.problem or "")


def test_methods_with_a_dial_are_all_but_a_few() -> None:
    assert {"none", "vta", "fitprune"}.isdisjoint(all_methods())
    assert {"st3", "fastv", "divprune"} <= set(all_methods())


def _row(spec: str, budget: int, fidelity: float, macs: float) -> dict[str, Any]:
    return {
        "spec": spec, "stride": None, "ratio": None, "tau": None, "final_keep": 0.2,
        "budget_tokens": budget, "mean_keep": budget / 576, "fidelity": fidelity,
        "accuracy": None, "kl": 0.001,
        "prefill_macs_ratio": macs, "kv_ratio": macs, "ttft_ms": 1.0, "tpot_ms": 1.0,
        "answer_ms": 9.0, "token_agreement": 1.0, "kv_mean_ratio": macs,
    }  # fmt: skip


def test_the_best_at_the_smallest_budget_comes_first(tmp_path: Path) -> None:
    cells = [
        _row("fastv:r=0.9", 64, 0.5, 0.1), _row("divprune:keep=0.11", 64, 0.9, 0.1),
        _row("fastv:r=0.7", 128, 1.0, 0.2), _row("divprune:keep=0.22", 128, 0.95, 0.2),
        _row("vtw", 64, 0, 0) | {"problem": "vtw leaves 100 to 500 tokens a layer, and not 64"},
    ]  # fmt: skip
    for key in ("fidelity", "kl"):
        del cells[-1][key]
    document: dict[str, Any] = {
        "cells": cells, "pareto": [], "settings": {"model": "tiny"}, "machine": {}, "chosen": None,
        "baseline": {"questions": 20, "accuracy": None, "visual_tokens": 576},
    }  # fmt: skip
    cells[2]["mean_keep"] = 140.8 / 576
    table = leaderboard(document)
    assert table.rows[1][4].endswith(" at 141")  # 128 were asked for
    assert [row[0] for row in table.rows] == ["divprune", "fastv", "vtw"]
    low, high = interval(18, 20)
    assert table.rows[0][1] == f"90.0 ({100 * low:.0f}-{100 * high:.0f})"
    assert table.rows[2][1:] == ("-",) * 6
    assert set(board(cells)["fastv"]) == {64, 128}
    document["settings"] |= {"date": "2026-01-01", "command": "st3 sweep"}
    document["machine"] = st3.machine.describe_machine(None)
    assert "leaderboard.png" in save_sweep(tmp_path, document, 12)
    assert "Leaderboard of tiny" in (tmp_path / "sweep.md").read_text(encoding="utf-8")


def test_options_that_make_no_sense(st3_: Any, tmp_path: Path) -> None:
    found = st3_("sweep", "--budget-tokens", "64", "--output", tmp_path / "a")
    assert found.code == 2
    assert "give --methods all" in found.err
    found = st3_(
        "sweep", "--budget-tokens", "64", "--methods", "vta", "--output", tmp_path / "a"
    )  # fmt: skip
    assert found.code == 2
    assert "no method can leave so many tokens: vta has no setting" in found.err


def test_a_method_that_cannot_be_turned_so_far_is_a_line(st3_: Any, tmp_path: Path) -> None:
    found = st3_(
        "sweep", "--methods", "pyramiddrop,divprune", "--budget-tokens", "64", "--scenes", "1",
        "--max-new-tokens", "2", "--output", tmp_path / "a", "--json",
    )  # fmt: skip
    assert found.code == 0, found.err
    skipped, chosen = json.loads(found.out)["cells"]
    assert skipped["problem"] == "pyramiddrop leaves 144 to 576 tokens a layer, and not 64"
    assert chosen["budget_tokens"] == 64
    assert "problem" not in chosen
