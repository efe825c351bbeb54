"""`st3 benchmark`: a dry run of the suite for a CPU, its album, going on, and two side by side."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from st3.benchmark import album, cpu, gpu
from st3.benchmark.compare import apart, compare
from st3.benchmark.standing import Standing
from st3.files import append_rows, read_rows
from st3.verification.checks import Verifier
from st3.verification.report import RED

SKIPPED = {"memory/small/4"}


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a whole dry run."""
    from st3.benchmark.benchmark import benchmark

    folder = tmp_path_factory.mktemp("dry")
    outcome = benchmark(folder, minutes=5, tiny=True, suite="cpu", device="cpu", command="st3 x")
    assert outcome.ended == "done", outcome.standing
    return folder


def test_a_dry_run_leaves_rows_tables_pictures_and_a_page(dry: Path) -> None:
    rows = read_rows(dry / "rows.jsonl")
    names = {cell.name for cell in cpu.cells(tiny=True)}
    assert {row["cell"] for row in rows if "cell" in row} == names
    assert {row["cell"] for row in rows if "skipped" in row} == SKIPPED
    exact = [row for row in rows if row.get("cell", "").startswith("exact/")]
    assert {row["dtype"] for row in exact} == {"float32", "bfloat16", "float16"}
    assert {row["verdict"] for row in exact} <= {"green", "not measured"}
    assert sum(row["reference"] == "stock" for row in exact) == 3
    assert next(row["cell"] for row in rows if "cell" in row) == "exact/float32"
    timelines = [row for row in rows if row.get("cell", "").startswith("timeline/")]
    assert {(row["method"], row["phase"]) for row in timelines} == {
        (method, phase) for method in ("stock", "st3") for phase in ("prefill", "decode step")
    }
    for row in timelines:
        ends = [start + took for start, took, _ in row["events"]]
        assert max(ends) == pytest.approx(row["span_ms"], abs=1e-3)
        assert 0 <= row["idle_share"] < 1
        assert "matmul" in {kind for _, _, kind in row["events"]}
    text = (dry / "tables.md").read_text(encoding="utf-8")
    for said in (
        "Correct on this device: float32",
        "At best on this device",
        "End to end: tiny small",
        "random weights",
        "Against stock's",
        "Kernels, in ms",
        "a budget of memory",
        "Not measured",
    ):
        assert said in text  # fmt: skip
    page = (dry / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    pictures = {path.name for path in dry.glob("*.png")}
    assert {"speed-table.png", "prefill.png", "timeline.png"} <= pictures
    assert page.count("data:image/png;base64,") == len(pictures)
    assert "a dry run" in page


def test_dtypes_have_panels_of_their_own(
    dry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of the peers, whose folder holds two."""
    cells = [row for row in read_rows(dry / "rows.jsonl") if "cell" in row]
    rows = [row for row in cells if row["cell"].startswith("table/")]
    rows += [row | {"dtype": "bfloat16"} for row in rows]
    drawn: list[Any] = []
    monkeypatch.setattr(album, "save_bars", lambda path, panels, *_: drawn.append(panels))
    monkeypatch.setattr(album, "save_savings", lambda path, *_: None)
    monkeypatch.setattr(album, "pictured", lambda path, _: "")
    starts = [row for row in read_rows(dry / "rows.jsonl") if "start" in row]
    album.save_album(tmp_path, [*starts, *rows], Standing((), {}, ()), "title")
    (panels,) = drawn
    assert {title.partition("\n")[0] for title in panels} == {
        "tiny small, float32", "tiny small, bfloat16",
    }  # fmt: skip
    for bars in panels.values():
        assert len({label for label, _, _ in bars}) == len(bars)


def test_ceilings_alone_are_something(st3_: Any, tmp_path: Path) -> None:
    result = st3_(
        "benchmark", "--tiny", "--device", "cpu", "--output", tmp_path, "--cells", "ceilings"
    )
    assert result.code == 0, result.err
    assert "At best on this device" in result.out
    for name in ("report.html", "tables.md"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert "GFLOP/s" in text or "TFLOP/s" in text
        assert "st3 benchmark --tiny" in text
        assert "Nothing has been measured" not in text


def test_it_goes_on_and_says_what_is_lacking(st3_: Any, dry: Path, tmp_path: Path) -> None:
    """All is measured but for what cannot be: nothing is measured again, and the code is 0."""
    folder = tmp_path / "on"
    shutil.copytree(dry, folder)
    before = (folder / "rows.jsonl").read_text(encoding="utf-8")
    result = st3_("benchmark", "--tiny", "--device", "cpu", "--output", folder, "--json")
    assert result.code == 0, result.err
    document = json.loads(result.out)
    assert document["ended"] == "done"
    assert set(document["not_measured"]) == SKIPPED
    assert (
        document["settings"]["command"] == "st3 benchmark --tiny --device cpu --output OUT --json"
    )
    after = (folder / "rows.jsonl").read_text(encoding="utf-8")
    assert after.startswith(before)
    fresh = [json.loads(line) for line in after.removeprefix(before).splitlines()]
    assert [row.get("cell") for row in fresh] == [None, *SKIPPED]


def test_time_that_is_up_leaves_what_it_bought(tmp_path: Path) -> None:
    """In a process of its own: Python may lose what an alarm raises, and only there knows how."""
    command = [
        sys.executable, "-m", "st3_cli", "benchmark", "--tiny", "--device", "cpu",
        "--output", str(tmp_path / "a"), "--minutes", "0.01",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert "the same command goes on" in done.stderr
    assert "time was up" in done.stdout
    assert (tmp_path / "a" / "report.html").exists()


def test_what_is_wrong_on_this_device_is_said(
    st3_: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Verifier, "_miscounted", lambda *_: ["bytes are missing"])
    result = st3_(
        "benchmark", "--tiny", "--device", "cpu", "--output", tmp_path, "--cells", "exact/float32"
    )
    assert result.code == 1
    assert "st3: wrong on this device: tiny 7b: none in float32, " in result.err
    assert RED in {row.get("verdict") for row in read_rows(tmp_path / "rows.jsonl")}
    assert "trust no figure below" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--minutes", "0"), "0 is no time: give more than 0, such as 9"),
        (("--minutes", "nan"), "nan is no time"),
        (("--suite", "gpu"), "this suite is for a GPU"),
        (("--cells", "nothing"), "no cell's name begins with 'nothing'; there are: exact/"),
        (("--output", __file__), "is a file, give a folder"),
        (("--compare", "A", "B"), "A holds no results of st3 benchmark"),
        (("--compare", "A", "B", "--tiny"), "--compare measures nothing"),
    ],
)
def test_wrong_use_is_one_line(
    st3_: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: Any, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = st3_("benchmark", "--device", "cpu", *arguments)
    assert result.code == 2
    assert says in " ".join(result.err.split())
    assert result.err.count("\n") == 1
    assert not [*tmp_path.iterdir()]


def test_other_folders_are_refused(st3_: Any, dry: Path, tmp_path: Path) -> None:
    """A real run in that of a dry one, another machine's, another dtype."""
    asked = ["benchmark", "--device", "cpu", "--output", dry]
    assert "holds a dry run" in st3_(*asked).err
    result = st3_(*asked, "--tiny", "--dtype", "bfloat16")
    assert (result.code, "give --dtype float32, or another" in result.err) == (2, True)
    machine = {"device": "cuda:0", "gpu": "H100", "dtype": "float32"}
    append_rows(tmp_path / "rows.jsonl", [{"start": 0, "tiny": True, "machine": machine}])
    result = st3_("benchmark", "--device", "cpu", "--tiny", "--output", tmp_path)
    assert result.code == 2
    assert "results of another machine (H100; this is " in result.err


def slower(folder: Path, target: Path, times: float) -> None:
    """The same results, of a machine that takes so many times as long."""
    rows = read_rows(folder / "rows.jsonl")
    for row in rows:
        for key in ("ttft_ms", "tpot_ms", "e2e_ms"):
            if row.get(key):
                row[key] *= times
    append_rows(target / "rows.jsonl", rows)


def test_two_folders_side_by_side(st3_: Any, dry: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    slower(dry, other, 2.0)
    result = st3_("benchmark", "--compare", other, dry, "--output", tmp_path / "both", "--json")
    assert result.code == 0, result.err
    document = json.loads(result.out)
    rows = read_rows(dry / "rows.jsonl")
    assert len(document["rows"]) == sum("e2e_ms" in row for row in rows)
    for row in document["rows"]:
        assert row["speedup"] == pytest.approx(2)
        assert row["e2e_ms"][0] == pytest.approx(2 * row["e2e_ms"][1])
    assert document["only"] == {"a": [], "b": []}
    assert document["a"]["machine"] == document["b"]["machine"]
    for name in ("compare.md", "compare.html", "compare.png"):
        assert (tmp_path / "both" / name).stat().st_size > 1000
    assert "2.00x" in (tmp_path / "both" / "compare.md").read_text(encoding="utf-8")
    shown = st3_("benchmark", "--compare", other, dry)
    assert "2.00x" in shown.out
    assert "A: " in shown.err


def test_what_differs_between_two(dry: Path, tmp_path: Path) -> None:
    """Cells that one has alone, and verdicts; nothing in common is refused."""
    rows = read_rows(dry / "rows.jsonl")
    for row in rows:
        if row.get("verdict"):
            row["verdict"] = "red"
    append_rows(tmp_path / "rows.jsonl", [r for r in rows if "methods/" not in r.get("cell", "")])
    found = compare(dry, tmp_path)
    assert found.only == {"a": ["methods/demo/1"], "b": []}
    assert found.changed[("tiny 7b", "none", "float32")] == ("green", "red")
    assert found.tables()[-1].title == "Verdicts that differ"
    (tmp_path / "c").mkdir()
    append_rows(tmp_path / "c" / "rows.jsonl", [row for row in rows if "start" in row])
    with pytest.raises(ValueError, match="share no figure"):
        compare(dry, tmp_path / "c")


@pytest.mark.parametrize(
    ("left", "right", "said"),
    [([1, 2], [3, 4], True), ([3, 4], [1, 2], True), ([1, 3], [2, 4], False), ([1], [2, 3], None)],
)
def test_beyond_the_spread(left: list[float], right: list[float], said: bool | None) -> None:
    a, b = ({"samples": {"e2e_ms": rounds}} for rounds in (left, right))
    assert apart(a, b) is said


def test_names_of_cells_are_their_own() -> None:
    for cells in (cpu.cells, gpu.cells):
        for tiny in (False, True):
            names = [cell.name for cell in cells(tiny=tiny)]
            assert len(names) == len(set(names))
            assert names[0].startswith("exact/")
