"""The suite for a GPU, as far as it goes without one."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from st3.benchmark import run as running
from st3.benchmark.cells import Skipped
from st3.benchmark.gpu import cells
from st3.benchmark.lab import Lab
from st3.benchmark.memory import OutOfBudget, largest_batch
from st3.benchmark.run import finished, run
from st3.benchmark.standing import standing
from st3.benchmark.suite import Cell
from st3.files import read_rows
from st3.profiling.latency import measure
from st3.profiling.runs import Variant
from st3.profiling.shape import Workload

ROOT = Path(__file__).parent.parent.parent
# The script's python3 is the one that runs the tests, activated or not.
OURS = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.mark.slow
def test_dry_run_killed_at_three_moments(tmp_path: Path) -> None:
    """The same command as on a GPU; what it wrote before a kill is there after it, unchanged."""
    command = ["bash", ROOT / ".ci" / "gpu", tmp_path, "--minutes", "0.67", "--tiny"]
    rows, before, moments = tmp_path / "rows.jsonl", "", random.Random(time.time_ns())
    for _ in range(3):
        process = subprocess.Popen(
            command, stderr=subprocess.DEVNULL, start_new_session=True, env=OURS
        )
        wanted = before.count("\n") + moments.randint(1, 12)
        while process.poll() is None:
            time.sleep(0.01)
            if rows.exists() and rows.read_text().count("\n") >= wanted:
                time.sleep(moments.random())
                break
        subprocess.run(["pkill", "-KILL", "-s", str(process.pid)], check=False)
        process.wait()
        after = rows.read_text()
        assert after.startswith(before)
        before = after
    for _ in range(12):  # on a busy machine 40 seconds may not do
        done = subprocess.run(command, capture_output=True, text=True, env=OURS)
        assert rows.read_text().startswith(before)
        before = rows.read_text()
        if done.returncode != 3:
            break
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    assert not [row for row in found if "error" in row]
    assert sum("start" in row for row in found) >= 4
    measured = [row for row in found if "start" not in row and "skipped" not in row]
    names = [cell.name for cell in cells(tiny=True)]
    skipped = {name for name in names if name.startswith("memory")}
    assert finished(found) == set(names) - skipped
    # No cell was measured twice, and the rows of a cell are of one process.
    assert len({(r["cell"], r["of_start"]) for r in measured}) == len(names) - len(skipped)
    for row in measured:
        if "method" in row:
            assert row["model"].startswith("tiny ")
            assert row["weights"] == "random"


def _cell(name: str, result: Any) -> Cell:
    def measure(lab: Lab) -> list[dict[str, Any]]:
        if isinstance(result, BaseException):
            raise result
        return [{"value": result}]

    return Cell(name, measure)


def test_what_fails_is_one_line_and_is_tried_again(tmp_path: Path) -> None:
    lab = Lab(torch.device("cpu"), torch.float32, tiny=True)
    said: list[str] = []
    suite = [_cell("a", 1), _cell("b", ValueError("too\nbad")), _cell("c", Skipped("no GPU"))]
    suite += [_cell("d", 2), _cell("e", KeyboardInterrupt()), _cell("f", 3)]
    ended = run(tmp_path, suite, lab, seconds=60, start={"machine": {}}, say=said.append)
    assert ended == "stopped"
    rows = read_rows(tmp_path / running.ROWS)
    assert [row.get("cell") for row in rows] == [None, "a", "b", "c", "d"]
    assert rows[2]["error"] == "ValueError: too\nbad"
    assert rows[2]["at"].startswith("test_benchmark.py:")
    assert rows[3]["skipped"] == "no GPU"
    assert finished(rows) == {"a", "d"}
    assert "b: failed: ValueError" in said[1]
    with (tmp_path / running.ROWS).open("a") as log:
        log.write('{"cell": "f", "va')  # a crash of the machine
    again = [*suite[:1], _cell("b", 5), suite[2], suite[3], _cell("e", 6), suite[5]]
    assert run(tmp_path, again, lab, seconds=60, start={"machine": {}}) == "done"
    rows = read_rows(tmp_path / running.ROWS)
    assert [(r["cell"], r["of_start"]) for r in rows[6:]] == [
        ("b", 1), ("c", 1), ("e", 1), ("f", 1),
    ]  # fmt: skip


def test_a_device_that_is_gone_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it had measured stays, nothing else is tried, and one line says how to go on."""
    lab = Lab(torch.device("cpu"), torch.float32, tiny=True)
    said: list[str] = []
    suite = [_cell("a", 1), _cell("b", RuntimeError("device lost")), _cell("c", 3)]
    monkeypatch.setattr(lab, "gone", lambda: "unspecified launch failure")
    monkeypatch.setattr(lab, "forget", lambda: torch.ones(1, device="meta").item())  # fails, too
    assert run(tmp_path, suite, lab, seconds=9, start={}, say=said.append) == "gone"
    assert "cpu does not answer any more (unspecified launch failure): see to it" in said[-1]
    rows = read_rows(tmp_path / running.ROWS)
    assert [row.get("cell") for row in rows] == [None, "a", "b"]
    monkeypatch.undo()
    assert lab.gone() is None
    suite[1] = _cell("b", 2)
    assert run(tmp_path, suite, lab, seconds=9, start={}) == "done"
    assert finished(read_rows(tmp_path / running.ROWS)) == {"a", "b", "c"}


def test_what_is_red_is_no_success(tmp_path: Path) -> None:
    lab = Lab(torch.device("cpu"), torch.float32, tiny=True)
    red = {"model": "7b", "method": "st3", "dtype": "float32", "verdict": "red"}
    suite = [Cell("exact/float32", lambda _: [red])]
    said: list[str] = []
    assert run(tmp_path, suite, lab, seconds=9, start={}, say=said.append) == "failed"
    assert "RED: 7b st3" in said[0]
    rows = read_rows(tmp_path / running.ROWS)
    found = standing(rows, ["exact/float32", "table/7b/1"])
    assert (found.measured, found.failed) == (("exact/float32",), True)
    assert found.red == ("7b: st3 in float32",)
    assert found.lacking == {"table/7b/1": "not measured: time was up"}


def test_time_ends_a_cell(tmp_path: Path) -> None:
    def sleep(lab: Lab) -> list[dict[str, Any]]:
        time.sleep(30)
        return []

    lab = Lab(torch.device("cpu"), torch.float32, tiny=True)
    suite = [_cell("a", 1), Cell("b", sleep)]
    before = signal.getsignal(signal.SIGALRM)
    assert run(tmp_path, suite, lab, seconds=0.3, start={}) == "stopped"
    assert signal.getsignal(signal.SIGALRM) is before
    assert finished(read_rows(tmp_path / running.ROWS)) == {"a"}


@pytest.mark.parametrize("fragments", [0, 60])
@pytest.mark.parametrize("budget", [50, 300, 1000, 5000])
def test_largest_batch(budget: int, fragments: int) -> None:
    """Against counting up: within five percent, and no batch that does not fit."""
    tried = []

    def attempt(batch: int) -> int:
        tried.append(batch)
        peak = 20 + 7 * batch
        if peak + fragments > budget:
            raise OutOfBudget
        return peak

    largest = max((n for n in range(1, 1000) if 20 + 7 * n + fragments <= budget), default=0)
    if not largest:
        with pytest.raises(ValueError, match="not even one prompt fits"):
            largest_batch(attempt, budget)
        return
    batch, peak = largest_batch(attempt, budget)
    assert 0.95 * largest - 1 <= batch <= largest
    assert peak == 20 + 7 * batch
    assert len(tried) < 15


def test_the_beginning_of_a_run_is_a_run() -> None:
    """`until` cuts times and bytes where a shorter answer would have ended."""
    lab = Lab(torch.device("cpu"), torch.float32, tiny=True)
    work = Workload(lab.pictures("7b", 1), 8, 9)
    found, _ = measure(lab.model("7b"), work, {"stock": Variant()}, repeats=1, min_seconds=0)
    whole = found["stock"].runs[0]
    part = found["stock"].until(4).runs[0]
    assert part.steps == whole.steps[:3]
    assert part.total == pytest.approx(whole.ttft + sum(whole.steps[:3]))
    assert found["stock"].until(9).runs[0].total == pytest.approx(whole.total)


def test_what_cannot_go_on_is_said(tmp_path: Path) -> None:
    lab = Lab(torch.device("cpu"), torch.float32, tiny=True)
    assert run(tmp_path, [_cell("a", ValueError("bad"))], lab, seconds=9, start={}) == "failed"
    lab.tiny = False
    with pytest.raises(ValueError, match="holds a dry run: give another"):
        run(tmp_path, [], lab, seconds=9, start={})
    mine = {"machine": {"cpu": "A", "cores": 2, "threads": 2, "device": "cpu"}}
    run(tmp_path / "mine", [], lab, seconds=9, start=mine)
    run(tmp_path / "mine", [], lab, seconds=9, start=mine)
    for other in ({"threads": 1}, {"cpu": "B"}, {"device": "cuda:0", "gpu": "H100"}):
        theirs = {"machine": mine["machine"] | other}
        with pytest.raises(ValueError, match=r"of another machine .*give another folder, and comp"):
            run(tmp_path / "mine", [], lab, seconds=9, start=theirs)
    (tmp_path / running.ROWS).write_text('{"start": 0, "tiny": false}\nwhat?\n{}\n')
    with pytest.raises(ValueError, match=r"line 2, is no JSON object: take that line out"):
        run(tmp_path, [], lab, seconds=9, start={})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "give a folder for the results"),
        (("--tiny",), "give a folder for the results"),
        (("OUT", "--minutes", "soon"), "--minutes: 'soon' is no number"),
        (("OUT", "--minutes"), "--minutes: '' is no number"),
        (("FILE",), "cannot be written"),
        (("OUT", "--tiny", "--cells", "nothing"), "no cell's name begins with 'nothing'; there"),
    ],
)
def test_wrong_use_is_one_line(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    (tmp_path / "FILE").touch()
    places = {"OUT": str(tmp_path / "out"), "FILE": str(tmp_path / "FILE")}
    command = ["bash", ROOT / ".ci" / "gpu", *(places.get(a, a) for a in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=OURS)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
