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


def test_labels_in_capitals(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """They are found, and printed as they were given."""
    for asked in held_out(2, 0, ["count"]):
        asked.picture.save(tmp_path / f"{asked.number}.png")
    right = [asked.question.answer for asked in held_out(2, 0, ["count"])]
    labels = ", ".join(word.title() for word in right)
    run(monkeypatch, "label_folder.py", str(tmp_path), "--labels", labels)
    found = [json.loads(line)["label"] for line in capsys.readouterr().out.splitlines()]
    assert found == [word.title() for word in right]


def test_compare_methods(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for asked in held_out(1, 0, ["count"]):
        asked.picture.save(tmp_path / "scene.png")
    questions = tmp_path / "questions.jsonl"
    broken, row = (
        json.dumps({"image": name, "prompt": "How many objects are there?"})
        for name in ("broken.png", "scene.png")
    )
    (tmp_path / "broken.png").write_bytes(b"no picture")
    questions.write_text(f"{broken}\n{row}\n{row}\n", encoding="utf-8")
    run(monkeypatch, "compare_methods.py", str(questions), "--methods", "st3,vtw:k=1")
    out, err = capsys.readouterr()
    told = f"question 1: {tmp_path / 'broken.png'} is not a picture that Pillow can read"
    assert told in err.splitlines()
    first, _, *rows = out.splitlines()
    assert first == "2 questions, 576 visual tokens in the first"
    cells = {line.split()[0]: line.split()[1:] for line in rows}
    assert {*cells} == {"none", "st3", "vtw:k=1"}
    assert cells["vtw:k=1"][0] == "0.0%"  # blind, it says another number
    assert cells["none"] == ["100.0%"] * 4
    kept = sum([576] * 3 + [288] * 3 + [c for c in (248, 207, 167, 127, 86, 46) for _ in range(4)])
    assert cells["st3"][1] == f"{(kept + 12) / (32 * 576):.1%}"


def test_compare_methods_on_nothing_that_can_be_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"image": "none.png", "prompt": "How many?"}\n', encoding="utf-8")
    with pytest.raises(SystemExit, match="no question could be answered"):
        run(monkeypatch, "compare_methods.py", str(questions), "--methods", "st3")
