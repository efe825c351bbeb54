"""The file of results: nothing is lost or done twice, and two runs do not meet."""

from __future__ import annotations

import errno
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

from st3.batch.journal import complete
from st3.batch.parquet import stored_results
from st3.batch.results import ResultsError, open_results
from st3.batch.row import Row
from st3.batch.settings import differences, settings_of
from st3.batch.sources import Source

SETTINGS = {"model": "demo", "tau": 128}


def row(number: int, **more: Any) -> dict[str, Any]:
    return {"row": number, "id": f"n{number}", "answer": "é" * number, **more}


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "answers.jsonl"


def test_results_come_in_any_order_and_end_in_theirs(path: Path) -> None:
    with open_results(path, SETTINGS) as results:
        results.append([row(3), row(1)])
        assert not results.finish(4)
        assert [x["row"] for x in read(path)] == [3, 1]
    with open_results(path, SETTINGS) as results:
        assert results.done == {1, 3}
        results.append([row(0), row(2)])
        assert results.finish(4)
    assert read(path) == [row(n) for n in range(4)]
    assert sorted(path.parent.iterdir()) == [path, path.with_name("answers.jsonl.settings.json")]


def test_a_torn_line_is_dropped(path: Path) -> None:
    with open_results(path, SETTINGS) as results:
        results.append([row(0), row(1)])
    whole = path.read_bytes()
    for cut in range(len(json.dumps(row(0))) + 2, len(whole)):
        path.write_bytes(whole[:cut])
        with open_results(path, SETTINGS) as results:
            assert results.done == {0}
            results.append([row(1)])
            assert results.finish(2)
        assert read(path) == [row(0), row(1)]


def test_other_settings_are_refused_by_name(path: Path) -> None:
    with open_results(path, SETTINGS) as results:
        results.append([row(0)])
    before = path.read_bytes()
    with (
        pytest.raises(ResultsError, match=r"tau: there 128, here 64.*--force"),
        open_results(path, SETTINGS | {"tau": 64}),
    ):
        pass
    assert path.read_bytes() == before
    with open_results(path, SETTINGS | {"tau": 64}, again=True) as results:
        assert results.done == set()
    assert not path.exists()
    with open_results(path, SETTINGS) as results:  # nothing was finished with the others
        assert results.done == set()


def test_a_file_of_somebody_else_is_left_alone(path: Path) -> None:
    path.write_text("precious\n", encoding="utf-8")
    with pytest.raises(ResultsError, match="--force"), open_results(path, SETTINGS):
        pass
    assert path.read_text(encoding="utf-8") == "precious\n"
    assert list(path.parent.iterdir()) == [path]


def test_a_line_that_is_no_result_is_named(path: Path) -> None:
    with open_results(path, SETTINGS) as results:
        results.append([row(0)])
    with path.open("a", encoding="utf-8") as file:
        file.write('{"other": 1}\n')
    with pytest.raises(ValueError, match="line 2"), open_results(path, SETTINGS):
        pass


def test_two_runs_refuse_each_other_and_a_dead_one_does_not(path: Path) -> None:
    holding = (
        "import sys, time; from pathlib import Path; from st3.batch.results import open_results\n"
        f"with open_results(Path(sys.argv[1]), {SETTINGS!r}) as results:\n"
        "    results.append([{'row': 0, 'id': 0}]); print('here', flush=True); time.sleep(100)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", holding, str(path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        other.stdout.readline()
        for again in (False, True):
            with (
                pytest.raises(ResultsError, match="another run is writing"),
                open_results(path, SETTINGS, again=again),
            ):
                pass
        with open_results(path, SETTINGS, first=False) as second:  # a process of the same run
            second.append([row(1)])
            assert not second.finish(2)  # the other is still there
    finally:
        other.send_signal(signal.SIGKILL)
        other.communicate()
    with open_results(path, SETTINGS) as results:
        assert results.done == {0, 1}
        assert results.finish(2)


def test_a_full_disk_leaves_whole_lines(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    with open_results(path, SETTINGS) as results:
        results.append([row(0)])
        before = path.read_bytes()
        monkeypatch.setattr(os, "write", lambda handle, text: write(handle, text[:9]))
        with pytest.raises(ValueError, match=f"{os.strerror(errno.ENOSPC)}.*goes on"):
            results.append([row(1)])
        monkeypatch.undo()
        assert path.read_bytes() == before
        results.append([row(1)])
        assert results.finish(2)
    assert read(path) == [row(0), row(1)]


def test_a_table(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "answers.parquet"
    with open_results(path, SETTINGS) as results:
        results.append([row(1)])
        assert not complete(path)
    with open_results(path, SETTINGS) as results:
        assert results.done == {1}
        results.append([{"row": 0, "id": 5, "error": "broken"}])
        assert results.finish(2)
    assert complete(path)
    table = parquet.read_table(path).to_pylist()
    assert [(x["row"], x["id"], x["answer"], x["error"]) for x in table] == [
        (0, "5", None, "broken"),
        (1, "n1", "é", None),
    ]
    with (
        pytest.raises(ResultsError, match="tau"),
        open_results(path, SETTINGS | {"tau": 1}),
    ):
        pass


def test_a_table_of_what_no_utf8_and_no_64_bits_can_write(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "answers.parquet"
    settings = SETTINGS | {"model": "\udc80"}
    with open_results(path, settings) as results:
        results.append([{"row": 0, "id": 2**63, "error": "\ud800!"}, row(1, id="\udfff")])
        assert results.finish(2)
    table = parquet.read_table(path).to_pylist()
    assert [x["id"] for x in table] == ["9223372036854775808", "\\udfff"]
    assert table[0]["error"] == "\\ud800!"
    with open_results(path, settings):
        pass


@pytest.mark.parametrize("kind", [".jsonl", ".parquet"])
@pytest.mark.parametrize("whole", [True, False])
def test_errors_are_forgotten_on_request(kind: str, whole: bool, tmp_path: Path) -> None:
    if kind == ".parquet":
        pytest.importorskip("pyarrow")
    path, broken = tmp_path / f"answers{kind}", {"row": 1, "id": "n1", "error": "broken"}
    with open_results(path, SETTINGS) as results:
        results.append([row(2), broken, *([row(0)] if whole else [])])
        assert results.finish(3) == whole
    with open_results(path, SETTINGS, retry=True) as results:
        assert results.done == ({0, 2} if whole else {2})
        assert results.errors == 0
        results.append([row(n) for n in range(3) if n not in results.done])
        assert results.finish(3)
    if kind == ".jsonl":
        assert read(path) == [row(n) for n in range(3)]
    else:
        assert [(x["id"], x["answer"]) for x in stored_results(path)] == [
            (f"n{n}", "é" * n) for n in range(3)
        ]
    before = path.read_bytes()
    with open_results(path, SETTINGS, retry=True):  # no errors, nothing to do
        assert path.read_bytes() == before
        assert complete(path) or kind == ".jsonl"


WRITER = """
import sys, time
from pathlib import Path
from st3.batch.results import open_results
path, rank, world, total = Path(sys.argv[1]), *map(int, sys.argv[2:5])
with open_results(path, {"a": 1}, first=rank == 0) as results:
    print("open", flush=True)
    left = [n for n in range(total) if n not in results.done][rank::world]
    for n in left:
        results.append([{"row": n, "id": n, "answer": "x" * (n % 50)}])
    results.finish(total)
"""


def test_killed_often_with_several_writers(path: Path) -> None:
    """Processes that append to one file, killed at any moment, and gone on with by others."""
    total, draw = 3000, random.Random(0)
    for world in (1, 2, 2, 3, 1):
        last, writers = world == 1 and path.exists(), []
        for rank in range(world):
            command = [sys.executable, "-c", WRITER, str(path), *map(str, (rank, world, total))]
            started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert started.stdout is not None
            started.stdout.readline()  # the first has looked whether the output is free
            writers.append(started)
        if not last:
            time.sleep(0.05 * draw.random())
        for writer in writers:
            if not last:
                writer.send_signal(signal.SIGKILL)
            writer.communicate()
    assert read(path) == [{"row": n, "id": n, "answer": "x" * (n % 50)} for n in range(total)]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([Row(1, "r", ("a",)), Row(2, "q", ("a",))], ["other prompts"]),
        ([Row(1, "q", ("a",)), Row("x", "q", ("b",))], ["other ids", "other pictures"]),
        ([Row(1, "q", ("a",))], ["rows: there 2, here 1"]),
        ([Row(1, "q", ("a",)), Row(2, "q", ("a",))], []),
    ],
)
def test_what_is_asked_differs_by_name(rows: list[Row], words: list[str]) -> None:
    before = settings_of(Source("x", [Row(1, "q", ("a",)), Row(2, "q", ("a",))]), "demo", {}, 3)
    assert differences(before, settings_of(Source("x", rows), "demo", {}, 3)) == words


def test_of_a_method_what_differs_alone() -> None:
    one = {"method": {"name": "st3", "tau": 64, "stride": 4}, "dtype": "auto"}
    assert differences(one, one | {"method": {"name": "st3", "tau": None, "stride": 4}}) == [
        "method tau: there 64, here none"
    ]
    assert differences(one, {"method": {"name": "fastv", "k": 2}, "dtype": "float32"}) == [
        "method: there st3, here fastv",
        "dtype: there auto, here float32",
    ]
