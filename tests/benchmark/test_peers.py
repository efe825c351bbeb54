"""Ways in processes of their own, side by side: what is kept, what is lost, whose turn it is."""

from __future__ import annotations

import runpy
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_llava

from st3.benchmark.peers import Subject, Way, side_by_side
from st3.benchmark.tables import tables
from st3.files import read_rows
from st3.profiling.outcome import Unavailable
from st3.profiling.runs import random_inputs
from st3.profiling.shape import Workload

PEERS = Path(__file__).parent.parent.parent / "docs" / "benchmarks" / "peers"
WORK = Workload(visual=64, text=9, new=3)
_PIPELINE = """
import time
class Pipeline:
    def __init__(self, folder, precision, threads, seed, tokens, log, fails=99):
        self.facts = {"precision": precision, "threads": threads, "versions": {}}
        self.tokens, self.log, self.asked, self.fails = tokens, log, 0, fails
    def answer(self, tensors, new, marks):
        began, self.asked = time.monotonic(), self.asked + 1
        if self.asked == self.fails:
            raise RuntimeError("no more\\nmemory")
        for _ in range(new):
            time.sleep(0.01)
            marks.mark()
        self.facts["asked"] = self.asked
        with open(self.log, "a") as file:
            file.write(f"{began} {time.monotonic()}\\n")
        return [self.tokens]
"""


def subject(folder: Path, prompts: int = 1, end: int | None = None) -> Subject:
    model = tiny_llava(layers=6)
    model.save_pretrained(folder)
    asked = [random_inputs(model, WORK, seed) for seed in range(prompts)]
    return Subject("tiny llava", "random", model.config, folder, asked, WORK, end)


def test_they_take_turns_and_what_fails_is_a_row(tmp_path: Path) -> None:
    pipeline, log = tmp_path / "pipeline.py", tmp_path / "log"
    pipeline.write_text(_PIPELINE, encoding="utf-8")

    def way(*tokens: int, **more: Any) -> Way:
        return Way(sys.executable, pipeline, {"tokens": [*tokens], "log": str(log), **more})

    ways = {
        "stock": way(5, 2, 7),
        "same": way(5, 2, 9),  # after the end, so it does not count
        "other": way(4, 2, 7),
        "fails": way(5, 2, 7, fails=2),
        "lost": Way("/no/such/python", pipeline, problem="pip install it ended with 1"),
        "unknown": Way("/no/such/python", pipeline),
    }
    began = time.monotonic()
    rows = side_by_side(subject(tmp_path / "m", end=2), ways, torch.float32, rounds=2, threads=1)
    assert [row["method"] for row in rows] == [*ways]
    found = {row["method"]: row for row in rows}
    assert [found[name].get("kept") for name in ways] == [1, 1, 0, None, None, None]
    assert found["fails"]["problem"].endswith("RuntimeError: no more")
    assert found["lost"]["problem"] == "pip install it ended with 1"
    assert found["unknown"]["problem"].startswith("its python cannot be run")
    for name in ("stock", "same", "other"):
        row = found[name]
        assert row["rounds"] == 2
        assert row["ttft_ms"] >= 10
        assert row["e2e_ms"] >= 30
        assert row["settings"]["threads"] == 1
        assert row["settings"]["asked"] == 3  # what is known behind an answer
        assert row["speedup"] == pytest.approx(found["stock"]["e2e_ms"] / row["e2e_ms"])
        assert row["peak_process_bytes"] is None or row["peak_process_bytes"] > 1e7
    spans = sorted(tuple(map(float, line.split())) for line in log.read_text().splitlines())
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    assert spans[0][0] > began
    table, lost = tables([row | {"cell": "peers/tiny/float32"} for row in rows])
    assert table.title.startswith("Beside the peers' own code: tiny llava, 3 new, random weights")
    assert [line[0] for line in table.rows] == [*ways]
    assert table.rows[4][1:4] == ("not measured",) * 3
    assert [line[0] for line in lost.rows] == ["fails", "lost", "unknown"]
    with pytest.raises(Unavailable):  # without stock there is nothing to hold them against
        side_by_side(
            subject(tmp_path / "m"), {"stock": ways["unknown"]}, torch.float32, rounds=1, threads=1
        )


def test_the_pipelines_that_are_here(tmp_path: Path) -> None:
    """Stock's and ours are real; kvpress is not installed, and its row says so."""
    ways = {
        "stock": Way(sys.executable, PEERS / "transformers_pipeline.py"),
        "none": Way(sys.executable, PEERS / "st3_pipeline.py", {"method": "none"}),
        "kvpress": Way(
            sys.executable, PEERS / "kvpress_pipeline.py", {"press": "KnormPress", "ratio": 0.5}
        ),
    }
    rows = side_by_side(subject(tmp_path, prompts=2), ways, torch.float32, rounds=2, threads=1)
    assert rows[1]["kept"] == 1
    assert rows[1]["settings"]["method"] == "none"
    assert rows[2]["problem"].endswith("it has no kvpress (there: pip install kvpress)")


def test_an_environment_proves_what_it_has(tmp_path: Path) -> None:
    """What works is taken, whatever was noted of it; another version is none."""
    names = runpy.run_path(str(PEERS / "environments.py"))
    make, environments, new = names["make"], names["ENVIRONMENTS"], names["Environment"]
    python = tmp_path / "x" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    failed = tmp_path / "x" / "failed.txt"
    failed.write_text("pip ended with 1\n", encoding="utf-8")
    for packages in (("pytest==0.0.1",), ("nothing-of-that-name==1",)):
        environments["x"] = new(packages)
        assert make(tmp_path, "x") == "pip ended with 1"
    environments["x"] = new((f"pytest=={pytest.__version__}",), proof="import pytest")
    assert make(tmp_path, "x") is None
    assert not failed.exists()
    for one in names["ENVIRONMENTS"].values():
        assert all("==" in text for text in one.packages[:1] + one.alone)
        compile(one.check, "check", "exec")


@pytest.mark.slow
def test_the_command_goes_on_without_a_peer(tmp_path: Path) -> None:
    """A dry run; what its folder says of an environment stands in rows and tables, without it."""
    folder, output = tmp_path / "peers", tmp_path / "out"
    (folder / "kvpress").mkdir(parents=True)
    why = f"pip ended with 1: ERROR: no space left at {folder.resolve()}/kvpress"
    (folder / "kvpress" / "failed.txt").write_text(f"{why}\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(PEERS / "measure.py"), str(folder), "--output", str(output), "--tiny",
         "--peers", "kvpress", "--cells", "peers/small", "--dtypes", "float32"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [row for row in read_rows(output / "rows.jsonl") if "method" in row]
    assert [row["method"] for row in rows if row["e2e_ms"]] == ["stock", "none", "st3"]
    assert [row["kept"] for row in rows if row["method"] in ("stock", "none")] == [1, 1]
    lost = {row["problem"] for row in rows if row["method"].startswith("kvpress")}
    assert lost == {"pip ended with 1: ERROR: no space left at FOLDER/kvpress"}
    for name in ("rows.jsonl", "tables.md", "report.html"):
        text = (output / name).read_text(encoding="utf-8")
        assert "FOLDER/kvpress" in text
        assert str(tmp_path) not in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--peers", "kvpres"), "--peers: no environment 'kvpres'; there are: openvino, "),
        (("--dtypes", "float8"), "--dtypes: 'float8' is none of float32, "),
        (("--minutes", "0"), "--minutes 0 is no time"),
        (("--new", "1"), "--new: at least 2 tokens"),
    ],
)
def test_wrong_use_installs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, arguments: Any, says: str
) -> None:
    monkeypatch.syspath_prepend(str(PEERS))
    monkeypatch.setattr(
        sys, "argv", ["measure.py", str(tmp_path / "a"), "--output", str(tmp_path), *arguments]
    )
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(PEERS / "measure.py"), run_name="__main__")
    assert ended.value.code == 2
    assert says in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]
