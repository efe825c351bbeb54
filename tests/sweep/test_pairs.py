"""One method beside another on the same questions, against counting by hand."""

from __future__ import annotations

import itertools
import json
import random
from fractions import Fraction
from math import comb
from pathlib import Path
from typing import Any

import pytest

from st3.sweep import pairs
from st3.sweep.album import tables_of


def test_of_two_methods() -> None:
    """Counts by loops, p by fractions."""
    draw = random.Random(0)
    for _ in range(40):
        count = draw.randint(1, 60)
        one, other = ("".join(draw.choice("01") for _ in range(count)) for _ in range(2))
        won = sum(a > b for a, b in zip(one, other, strict=True))
        lost = sum(a < b for a, b in zip(one, other, strict=True))
        tail = sum(Fraction(comb(won + lost, n), 2 ** (won + lost)) for n in range(won + lost + 1)
                   if abs(2 * n - won - lost) >= abs(won - lost))  # fmt: skip
        found = pairs.compared(one, other)
        assert (found["won"], found["lost"]) == (won, lost)
        assert found["p"] == pytest.approx(float(tail))
        assert found["difference"] == pytest.approx((one.count("1") - other.count("1")) / count)
        assert found["low"] <= found["difference"] <= found["high"]
        back = pairs.compared(other, one)
        assert (back["low"], back["p"]) == pytest.approx((-found["high"], found["p"]))


def test_holm_refuses_what_its_steps_refuse() -> None:
    """A value is below a level if it and all smaller ones pass the level over those left."""
    draw = random.Random(1)
    for _ in range(30):
        values = [draw.random() ** 3 for _ in range(draw.randint(1, 9))]
        found = pairs.holm(values)
        for level in (0.01, 0.05, 0.3):
            passed: list[float] = []
            for number, value in enumerate(sorted(values)):
                if value * (len(values) - number) >= level:
                    break
                passed.append(value)
            assert [x < level for x in found] == [x in passed for x in values]


def _row(spec: str, budget: int | None, outcomes: str) -> dict[str, Any]:
    share = outcomes.count("1") / len(outcomes)
    return {
        "spec": spec, "stride": None, "ratio": None, "tau": None, "final_keep": 0.2,
        "budget_tokens": budget, "mean_keep": (budget or 576) / 576, "fidelity": share,
        "kl": 0.001, "prefill_macs_ratio": 0.2,
        "kv_ratio": 0.2, "ttft_ms": 1.0, "tpot_ms": 1.0, "same_each": outcomes, "right_each": "",
        "accuracy": None,
    }  # fmt: skip


def _document(*cells: dict[str, Any]) -> dict[str, Any]:
    return {
        "cells": [*cells], "pareto": [], "settings": {"model": "tiny"},
        "baseline": {"visual_tokens": 576, "questions": 8, "accuracy": None},
    }  # fmt: skip


def test_each_budget_has_pairs_of_its_own() -> None:
    document = _document(
        _row("fastv:r=0.9", 64, "11110000"), _row("dpp:keep=0.1", 64, "11111110"),
        _row("fastv:r=0.7", 128, "11111110"), _row("dpp:keep=0.2", 128, "11110000"),
        _row("vtw:k=3", 128, "11111110"),
    )  # fmt: skip
    pairs.pair(document, "fastv")
    cells = document["cells"]
    assert [cells[n]["beside"] for n in (0, 2)] == [None, None]
    assert [(cells[n]["beside"]["won"], cells[n]["beside"]["lost"]) for n in (1, 3, 4)] == [
        (3, 0), (0, 3), (0, 0),
    ]  # fmt: skip
    assert cells[1]["beside"]["p"] == 0.25
    assert cells[1]["beside"]["p_holm"] == 0.75
    _, table, _ = tables_of(document)
    assert table.title == "Pairs of tiny beside fastv, 8 questions"
    assert [row[0] for row in table.rows] == ["dpp", "vtw"]
    assert table.rows[0][1] == "3 : 0"
    assert table.rows[0][2].startswith("+37.5 (")
    assert table.rows[1][1:4] == ("-", "-", "-")
    assert "64: more same, points (95 %)" in table.heads


def test_without_budgets_a_cell_is_called_by_its_spec() -> None:
    document = _document(_row("dpp:keep=64", None, "1" * 8), _row("st3", None, "0" * 8))
    pairs.pair(document, "st3")
    assert document["cells"][0]["beside"]["won"] == 8
    assert tables_of(document)[1].rows == (("dpp:keep=64", "8 : 0", *_shown(document)),)
    assert "*" in _shown(document)[0]


def _shown(document: dict[str, Any]) -> tuple[str, str]:
    found = document["cells"][0]["beside"]
    low, high = 100 * found["low"], 100 * found["high"]
    return f"+100.0 ({low:+.0f} to {high:+.0f})*", f"{found['p']:.2g}"


def test_rows_of_an_older_version_cannot_be_paired() -> None:
    document = _document(_row("dpp:keep=64", None, "1" * 8), _row("st3", None, "0" * 8))
    del document["cells"][0]["same_each"]
    with pytest.raises(ValueError, match="cell dpp:keep=64 does not say how each question went"):
        pairs.pair(document, "st3")


def test_the_command(st3_: Any, tmp_path: Path) -> None:
    asks = ("sweep", "--methods", "dpp:keep=2,random-before:keep=2,none", "--final-keep", "1%",
            "--strides", "4", "--scenes", "1", "--max-new-tokens", "8")  # fmt: skip
    found = st3_(*asks, "--beside", "dpp", "--output", tmp_path / "a")
    assert found.code == 2
    assert "--beside dpp: it is none of" in found.err
    assert not (tmp_path / "a").exists()
    found = st3_(*asks, "--beside", "none", "--output", tmp_path / "a", "--json")
    assert found.code == 0, found.err
    document = json.loads(found.out)
    assert document["beside"] == "none"
    rows = {row["spec"]: row for row in document["cells"]}
    for spec, row in rows.items():
        assert len(row["right_each"]) == document["baseline"]["questions"]
        if spec == "none":
            assert row["beside"] is None
            continue
        won, lost = (
            sum(pair == kind for pair in zip(row["right_each"], rows["none"]["right_each"],
                                             strict=True))
            for kind in itertools.permutations("10")
        )  # fmt: skip
        assert (row["beside"]["won"], row["beside"]["lost"]) == (won, lost)
        assert row["accuracy"] == row["right_each"].count("1") / len(row["right_each"])
    assert "Pairs of demo beside none" in (tmp_path / "a" / "sweep.md").read_text(encoding="utf-8")
