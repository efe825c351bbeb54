"""The folder of a sweep: what is broken in it is named, and what is finished is not lost."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from st3 import demo
from st3.sweep import folder

COMMAND = ["sweep", "--strides", "9,12", "--ratios", "0.05,0.1", "--max-new-tokens", "4"]


def cell(spec: str, **more: Any) -> dict[str, Any]:
    """A finished cell's row."""
    figures = dict.fromkeys(folder._FIGURES, 0.5) | {"accuracy": None}
    return {"spec": spec, **figures} | more


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one question, which every sweep here asks."""
    place = tmp_path_factory.mktemp("asked")
    Image.open(demo.PICTURE).save(place / "a.png")
    line = {"image": "a.png", "prompt": "how many objects are there?", "answer": "four"}
    (place / "q.jsonl").write_text(json.dumps(line))
    return place / "q.jsonl"


@pytest.fixture
def sweep(st3_: Any, swept: Path, tmp_path: Path) -> Any:
    """Run the same sweep in a folder."""
    return lambda *more: st3_(*COMMAND, "--data", swept, "--output", tmp_path / "out", *more)


def one_line(result: Any, code: int, *texts: str) -> None:
    said = [line for line in result.err.strip().splitlines() if line.startswith("st3:")]
    assert result.code == code, result.err
    assert len(said) == 1
    assert result.err.strip().endswith(said[0])
    for text in texts:
        assert text in said[0]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("what?", "is no JSON object: take that line out"),
        ("[1]", "is no JSON object"),
        ('{"kl": 1}', 'has no "spec" that makes sense: take that line out, and its cell is run'),
        (json.dumps(cell("x", kl=None)), 'has no "kl"'),
        (json.dumps(cell("x", ttft_ms="fast")), 'has no "ttft_ms"'),
        (json.dumps({"spec": "untrimmed"}), 'has no "questions"'),
        (json.dumps({key: x for key, x in cell("x").items() if key != "accuracy"}), '"accuracy"'),
    ],
)
def test_a_broken_cell_is_named_with_its_line(tmp_path: Path, line: str, text: str) -> None:
    folder.open_folder(tmp_path / "f", {})
    folder.append_cell(tmp_path / "f", cell("a"))
    with (tmp_path / "f" / "cells.jsonl").open("a") as file:
        file.write(line + "\n" + json.dumps(cell("b")) + "\n")
    with pytest.raises(ValueError, match=r"cells\.jsonl, line 2, ") as found:
        folder.read_cells(tmp_path / "f")
    assert text in str(found.value)


def test_broken_settings_are_named_with_their_line(tmp_path: Path) -> None:
    folder.open_folder(tmp_path, {"a": 1, "b": 2})
    (tmp_path / "settings.json").write_text('{\n  "a": 1\n  "b": 2\n}\n')
    with pytest.raises(ValueError, match=r"settings\.json, line 3, is no JSON .*: mend it, or"):
        folder.open_folder(tmp_path, {"a": 1, "b": 2})


def test_a_folder_that_is_not_this_sweeps_is_wrong_usage(sweep: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    one_line(sweep(), 2, "holds other files: give another --output")
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    (out / "notes.txt").unlink()
    folder.open_folder(out, {"model": "another"})
    one_line(sweep(), 2, "holds a sweep with other settings (model: there another, here demo")


@pytest.mark.parametrize("command", ["sweep", "attention-map"])
def test_a_place_that_cannot_be_written_is_refused_at_once(
    st3_: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str
) -> None:
    """The same words everywhere, before anything is loaded."""
    import tempfile

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    result = st3_(command, "--output", tmp_path / "new" / "folder")
    one_line(result, 2, f"the folder {tmp_path} is not writable (Read-only file system)")
    (tmp_path / "file").write_text("")
    one_line(st3_(command, "--output", tmp_path / "file" / "x"), 2, "file is a file, give a folder")


def full(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.slow
def test_a_disk_that_fills_up_loses_no_cell(
    sweep: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Full after two cells, and again while the pictures are written; then there is room."""
    append = folder.append_rows
    done: list[Any] = []

    def filling(path: Path, rows: Any) -> None:
        if len(done) == 2:
            full()
        done.append(rows)
        append(path, rows)

    with monkeypatch.context() as patched:
        patched.setattr(folder, "append_rows", filling)
        result = sweep()
    one_line(result, 1, "cells.jsonl: No space left on device", "the same command goes on")
    assert "about " in result.err  # how long it will take, before the first cell
    assert " for 4 cells" in result.err
    assert len(folder.read_cells(tmp_path / "out")) == 2
    with monkeypatch.context() as patched:
        patched.setattr("st3.sweep.album.write_text", full)
        result = sweep()
    one_line(result, 1, "cannot write into", "No space left on device", "the same command goes on")
    assert " for 3 cells" in result.err
    result = sweep("--json")
    assert result.code == 0
    assert " cell" not in result.err  # nothing is left to run
    assert len(json.loads(result.out)["cells"]) == 4


def test_the_estimate_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As many times what the untrimmed answers took as this process has cells."""
    from st3.batch.ranks import Ranks
    from st3.sweep.grid import make_grid
    from st3.sweep.run import run_cells

    class Asked:
        seconds = 3.0

        def baseline(self) -> dict[str, Any]:
            return {"questions": 1, "ttft_ms": 1.0, "tpot_ms": 1.0, "accuracy": None}

        def run(self, one: Any) -> dict[str, Any]:
            return cell(one.spec)

    cells = make_grid(32, [9, 12], [0.05, 0.1], [None])
    told: list[tuple[float, int]] = []
    for ranks, expected in ((Ranks(), (12.0, 4)), (Ranks(0, 2), (6.0, 4))):
        out = tmp_path / str(ranks.world)
        run_cells(
            out, {"layers": 32}, cells, Asked, ranks,  # type: ignore[arg-type]
            on_estimate=lambda *found: told.append(found),
        )  # fmt: skip
        assert told.pop() == expected
    assert not told


def test_cells_that_cannot_be_say_why_on_the_screen(st3_: Any, swept: Path, tmp_path: Path) -> None:
    result = st3_(
        "sweep", "--data", swept, "--output", tmp_path / "out", "--strides", "1,9", "--ratios",
        "0.05,0.2", "--max-new-tokens", "2",
    )  # fmt: skip
    assert result.code == 0, result.err
    text = " ".join(result.out.split())
    assert "C < 0 cannot be" in text
    assert "The largest R is 0.0172 for S=1, 0.1666 for S=9." in text
    rows = json.loads((tmp_path / "out" / "sweep.json").read_text())["cells"]
    for row in rows:
        assert ("problem" in row) == (row["final_keep"] < 0)
        if "problem" in row:
            assert f"the largest R for this S is {row['largest_ratio']:g}" in row["problem"]


def test_other_problems_are_said_as_they_are() -> None:
    from st3.sweep.results import impossible

    rows = [{"stride": 40, "final_keep": 0.5, "problem": "S is too long"}] * 2
    assert impossible(rows) == ["Cannot be: S is too long."]


def test_cells_of_many_writers_stay_whole(tmp_path: Path) -> None:
    folder.open_folder(tmp_path / "f", {"a": 1})
    code = (
        "import json, sys; from pathlib import Path; from st3.sweep.folder import append_cell\n"
        "row = json.loads(sys.argv[3])\n"
        "[append_cell(Path(sys.argv[1]), row | {'spec': sys.argv[2] + str(n)}) for n in range(40)]"
    )
    row = json.dumps(cell("", x="y" * 3000))
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "f"), name, row])
        for name in "ab"
    ]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert len(folder.read_cells(tmp_path / "f")) == 80


def test_a_kill_while_settings_are_written_spoils_nothing(tmp_path: Path) -> None:
    out = tmp_path / "f"
    out.mkdir()
    (out / ".settings.abc.json").write_text('{"a"')
    folder.open_folder(out, {"a": 1})
    folder.append_cell(out, cell("x"))
    folder.open_folder(out, {"a": 1})
    assert list(folder.read_cells(out)) == ["x"]
    with pytest.raises(ValueError, match="a: there 1, here 2"):
        folder.open_folder(out, {"a": 2})
