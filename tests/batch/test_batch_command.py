"""`st3 batch`: a file of answers, whatever happens on the way."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import tiny_checkpoint
from killing import finished, make_rows, start
from torchrun import torchrun

from st3 import demo
from st3.batch import answering
from st3.batch.ranks import Ranks
from st3.batch.row import Result, Row
from st3.batch.run import answer_file
from st3.batch.settings import settings_of
from st3.batch.sources import Source


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    make_rows(folder, 8)
    return folder


SHORT = ("--max-new-tokens", "3", "--workers", "0")


def test_answers_in_a_file_and_again(folder: Path, tmp_path: Path, st3_: Any) -> None:
    output = tmp_path / "answers.jsonl"
    result = st3_("batch", folder / "rows.jsonl", "--output", output, *SHORT, "--json")
    assert result.code == 0, result.err
    told = json.loads(result.out)
    assert (told["rows"], told["done"], told["errors"], told["whole"]) == (8, 8, 1, True)
    assert told["untrimmed_kv_bytes_per_row"] > told["kv_bytes_per_row"]
    assert sum(told["shares"].values()) == pytest.approx(1)
    assert "times as many rows" in result.err
    assert "1 row with an error" in result.err
    rows = read(output)
    assert [row["id"] for row in rows] == [f"r{n}" for n in range(8)]
    assert "damaged" in rows[3]["error"]
    alone = st3_(
        "run", folder / "0.png", _prompt(folder, 0), "--max-new-tokens", 3, "--json"
    )  # fmt: skip
    document = json.loads(alone.out)
    assert rows[0]["answer"] == document["answer"]
    assert rows[0]["visual_tokens"] == document["visual_tokens"]["total"]
    kept = document["visual_tokens"]["kept_per_layer"]
    assert rows[0]["kept_visual_tokens"] == pytest.approx(sum(kept) / len(kept), abs=0.01)

    before = output.read_bytes()
    again = st3_("batch", folder / "rows.jsonl", "--output", output, *SHORT)
    assert again.code == 0
    assert "there already: 8 of 8 rows" in again.err
    other = st3_("batch", folder / "rows.jsonl", "--output", output, *SHORT, "--tau", 9)
    assert other.code == 2
    assert "other settings (method tau: there 128, here 9):" in other.err
    other = st3_(
        "batch", folder / "rows.jsonl", "--output", output, *SHORT, "--method", "pvtp"
    )  # fmt: skip
    assert "other settings (method: there st3, here pvtp):" in other.err
    assert output.read_bytes() == before
    anew = st3_("batch", folder / "rows.jsonl", "--output", output, *SHORT, "--tau", 9, "--force")
    assert anew.code == 0
    assert len(read(output)) == 8


def _prompt(folder: Path, row: int) -> str:
    return str(read(folder / "rows.jsonl")[row]["prompt"])


def test_a_table(folder: Path, tmp_path: Path, st3_: Any) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    output = tmp_path / "answers.parquet"
    for said in ("wrote", "there already: 8 of 8 rows"):
        result = st3_("batch", folder / "rows.jsonl", "--output", output, *SHORT)
        assert result.code == 0, result.err
        assert said in result.err
        assert "1 row with an error" in result.err
        assert len(parquet.read_table(output)) == 8
    assert {file.name for file in tmp_path.iterdir()} == {
        "answers.parquet", "answers.parquet.settings.json",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("nowhere", "--prompt", "q"), 1, "there is no nowhere"),
        ((str(demo.PICTURE),), 1, "give --prompt"),
        ((str(demo.PICTURE), "--prompt", "q", "--ray-address", "x"), 2, "--engine ray"),
        ((str(demo.PICTURE), "--prompt", "q", "--frames", "2", "--fps", "1"), 2, "give one"),
        ((str(demo.PICTURE), "--prompt", "q", "--method", "nonsense"), 2, "unknown method"),
        ((str(demo.PICTURE.parent), "-", "--prompt", "q"), 1, "standard input: give it alone"),
    ],
)
def test_bad_input(
    arguments: Any, code: int, said: str, tmp_path: Path, st3_: Any
) -> None:  # fmt: skip
    output = tmp_path / "answers.jsonl"
    result = st3_("batch", *arguments, "--output", output)
    assert result.code == code
    assert said in result.err
    assert not list(tmp_path.iterdir())
    assert st3_("batch", *arguments, "--output", tmp_path / "answers.txt").code == 2


def test_the_source_is_never_the_output(folder: Path, tmp_path: Path, st3_: Any) -> None:
    """Under none of its names, and whatever is asked for."""
    source = tmp_path / "rows.parquet.jsonl"
    source.write_bytes((folder / "rows.jsonl").read_bytes())
    (tmp_path / "link.jsonl").symlink_to(source)
    os.link(source, tmp_path / "hard.jsonl")
    before = source.read_bytes()
    for asked, output in (
        (source, source.name), (source, "link.jsonl"), (source, "hard.jsonl"),
        (tmp_path / "link.jsonl", source.name), (tmp_path / "*.jsonl", "hard.jsonl"),
        (source, "rows.parquet"),  # whose rows lie in the source's place until all are there
    ):  # fmt: skip
        for more in ((), ("--force",)):
            result = st3_("batch", asked, "--output", tmp_path / output, *SHORT, *more)
            assert result.code == 2
            assert "is a file of the source: give another name" in result.err
            assert source.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 3


def test_every_row_with_an_error_is_no_success_until_it_is_mended(
    tmp_path: Path, st3_: Any
) -> None:
    picture, output = tmp_path / "a.png", tmp_path / "answers.jsonl"
    picture.write_bytes(b"no picture")
    command = ("batch", picture, "--prompt", "q", "--output", output, *SHORT)
    result = st3_(*command)
    assert result.code == 1
    assert "every row has an error" in result.err
    picture.write_bytes(demo.PICTURE.read_bytes())
    assert st3_(*command).code == 1  # it is done
    assert st3_(*command, "--retry-errors", "--force").code == 2
    result = st3_(*command, "--retry-errors", "--method", "none")
    assert "method: there st3, here none" in result.err
    assert "error" in read(output)[0]
    result = st3_(*command, "--retry-errors")
    assert result.code == 0, result.err
    assert "1 row in" in result.err
    assert read(output)[0]["answer"]


def test_ctrl_c_keeps_what_is_finished(
    folder: Path, tmp_path: Path, st3_: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, real = tmp_path / "answers.jsonl", answering.batches

    def interrupted(*args: Any, **options: Any) -> Any:
        yield next(real(*args, **options))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(answering, "batches", interrupted)
        result = st3_("batch", folder / "rows.jsonl", "--output", output, *SHORT)
    assert result.code == 130
    done = len(read(output))
    assert 0 < done < 8
    assert f"interrupted: {done} of 8 rows" in result.err
    assert st3_("batch", folder / "rows.jsonl", "--output", output, *SHORT).code == 0
    assert [row["row"] for row in read(output)] == list(range(8))


def test_rows_that_are_missing_are_no_success(
    folder: Path, tmp_path: Path, st3_: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where another process has died."""
    output, real = tmp_path / "answers.jsonl", answering.batches

    def some(*args: Any, **options: Any) -> Any:
        yield next(real(*args, **options))

    with monkeypatch.context() as patched:
        patched.setattr(answering, "batches", some)
        result = st3_("batch", folder / "rows.jsonl", "--output", output, "--json", *SHORT)
    done = len(read(output))
    told = json.loads(result.out)
    assert (result.code, told["whole"], told["done"]) == (1, False, done)
    line = f"st3: {8 - done} rows missing in {output}: the same command goes on"
    assert result.err.splitlines()[-1] == line
    assert st3_("batch", folder / "rows.jsonl", "--output", output, *SHORT).code == 0


def test_only_what_is_left_is_answered(tmp_path: Path) -> None:
    source = Source("x", [Row(n, "q", ("a.png",), number=n) for n in range(9)])
    settings, asked = settings_of(source, "demo", {}, 3), []

    def some(rows: Any) -> Any:
        for row in rows[:4]:
            asked.append(row.number)
            yield [Result(row.number, row.id, answer="x")]

    output = tmp_path / "answers.jsonl"
    for done, whole in ((4, False), (8, False), (9, True), (9, True)):
        run = answer_file(source, output, settings, some, Ranks())
        assert (run.done, run.whole, run.errors) == (done, whole, 0)
    assert asked == list(range(9))
    run = answer_file(source, output, settings, some, Ranks(), again=True)
    assert (run.before, run.done) == (0, 4)


@pytest.mark.slow
def test_killed_and_gone_on_with_by_two_processes(tmp_path: Path) -> None:
    """Workers end with their parent; two processes do the rest; the file is that of one run."""
    rows = make_rows(tmp_path, 23)
    output = tmp_path / "answers.jsonl"
    tiny = str(tiny_checkpoint(tmp_path / "tiny"))
    options = ["--max-new-tokens", "2", "--batch-size", "2", "--model", tiny]
    going = start(rows, output, *options, "--workers", "1")
    while not finished(output):
        assert going.poll() is None
        time.sleep(0.01)
    family = psutil.Process(going.pid).children(recursive=True)
    assert family
    os.kill(going.pid, 9)  # the main process alone
    going.communicate()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
    with output.open("ab") as file:
        file.write(b'{"row": 22, "id": "to')  # as a crash of the machine may leave it
    before = finished(output)
    assert before < 23
    there = {json.loads(x)["row"] for x in output.read_bytes().splitlines()[:before]}
    code, out, err = torchrun(
        "-m", "st3_cli", "batch", str(rows), "--output", str(output), *options, "--workers", "0",
        "--json",
    )  # fmt: skip
    assert code == 0, err
    found = read(output)
    told = json.loads(out)
    now = [row for row in found if row["row"] not in there and "answer" in row]
    assert told["new_tokens"] == sum(row["new_tokens"] for row in now)  # of both
    assert told["pictures_per_second"] * told["seconds"] == pytest.approx(len(now))
    assert [row["id"] for row in found] == [f"r{n}" for n in range(23)]
    assert [row["row"] for row in found if "error" in row] == [3]
    same: dict[str, set[str]] = {}  # the same question twenty rows later
    for number, row in enumerate(found):
        if "answer" in row:
            same.setdefault(str(number % 20), set()).add(row["answer"])
    assert all(len(answers) == 1 for answers in same.values())
