"""The scripts of docs/examples, on the demo as they stand."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

from st3.demo.held_out import held_out

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_all_are_here() -> None:
    tested = {"serve.py", "label_folder.py", "compare_methods.py"}
    assert {path.name for path in EXAMPLES.glob("*.py")} == tested


def test_serve(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch, "serve.py")
    answer, kept = capsys.readouterr().out.splitlines()
    assert answer == "four"
    number, whole = float(kept.split()[0]), int(kept.split()[2])  # kept: the mean over layers
    assert 0 < number < whole
    assert whole > 576


def test_label_folder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch, "label_folder.py")
    out, err = capsys.readouterr()
    assert "6 labelled, 1 left over" in err
    assert "broken.jpg" in err
    found = {row["picture"]: row["label"] for row in map(json.loads, out.splitlines())}
    right = {f"{a.number}.png": a.question.answer for a in held_out(6, 0, ["count"])}
    assert found == right


def test_compare_methods(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for asked in held_out(1, 0, ["count"]):
        asked.picture.save(tmp_path / "scene.png")
    row = json.dumps({"image": "scene.png", "prompt": "How many objects are there?"})
    (tmp_path / "questions.jsonl").write_text(f"{row}\n{row}\n", encoding="utf-8")
    run(
        monkeypatch, "compare_methods.py", str(tmp_path / "questions.jsonl"),
        "--methods", "st3,vtw:k=30",
    )  # fmt: skip
    first, _, *rows = capsys.readouterr().out.splitlines()
    assert first == "2 questions, 576 visual tokens in the first"
    cells = {line.split()[0]: line.split()[1:] for line in rows}
    assert {*cells} == {"none", "st3", "vtw:k=30"}
    assert cells["none"] == ["100.0%"] * 4
    kept = sum([576] * 3 + [288] * 3 + [c for c in (248, 207, 167, 127, 86, 46) for _ in range(4)])
    assert cells["st3"][1] == f"{(kept + 12) / (32 * 576):.1%}"
