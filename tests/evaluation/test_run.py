"""Cells that are answered, stopped, gone on with and scored; with a task of the tests' own."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_checkpoint
from PIL import Image

import st3
from st3.batch.asking import Course
from st3.batch.ranks import Ranks
from st3.evaluation import album
from st3.evaluation.evaluate import evaluate
from st3.evaluation.hush import hushed
from st3.evaluation.identity import cell_settings, model_identity
from st3.evaluation.questions import Part, Question, make_question
from st3.evaluation.results import Coster, Score, Unscored, tables
from st3.evaluation.run import Cell, answer_cell, read_answers
from st3.methods import make_method
from st3_cli.evaluate_report import notes

WORDS = ("is there a red circle?", "how many objects?", "what is left?", "red?", "is it blue?")


class Exam:
    """Questions about a red picture; right is whatever begins with a letter of the first half."""

    name, tokens, weighing = "scienceqa_img", 6, False

    def __init__(self, count: int = 5) -> None:
        self.ids = [f"d{n}" for n in range(count)]
        self.settings = {"name": self.name, "data": "0123"}
        self.scored = 0

    def question(self, number: int) -> Question:
        parts = (Part("image", Image.new("RGB", (32, 32), "red")), Part("text", WORDS[number]))
        return make_question(number, self.ids[number], (("user", parts),))

    def score(self, answers: Sequence[dict[str, Any]], folder: Path) -> Score:
        self.scored += 1
        assert folder.is_dir()
        values = tuple(float((row.get("answer") or "z")[0] < "n") for row in answers)
        share = sum(values) / len(values)
        return Score("exact_match", 100 * share, values, 100.0, {"exact_match": share}, 0)


class Bar:
    """Counts."""

    def __init__(self) -> None:
        self.begun: list[tuple[int, int]] = []
        self.noted = 0

    def begin(self, before: int, mine: int) -> None:
        self.begun.append((before, mine))

    def note(self, results: Sequence[Any], course: Course) -> None:
        self.noted += len(results)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def live(place: Path) -> tuple[Any, Any]:
    return st3.load(str(place), device="cpu", dtype="float32")


def cell(label: str = "st3", **more: Any) -> Cell:
    method = None if label == "stock" else make_method(label)
    settings = cell_settings({"model": "m"}, Exam().settings, {"name": label}, **more)
    return Cell(Exam.name, label, method, settings)


def ask(folder: Path, live: Any, count: int = 5, **more: Any) -> Any:
    course, told = Course(), Bar()
    run = answer_cell(
        folder, cell(), Exam(count), lambda: live, Ranks(), course, batch_size=1,
        on_begin=told.begin, on_results=lambda results: told.note(results, course), **more,
    )  # fmt: skip
    return run, told


def test_answers_are_those_of_a_single_question(live: tuple[Any, Any], tmp_path: Path) -> None:
    run, told = ask(tmp_path, live)
    assert (run.done, run.errors, run.whole, told.noted) == (5, 0, True, 5)
    rows = read_answers(tmp_path, cell(), 5)
    model, processor = live
    for row, words in zip(rows, WORDS, strict=True):
        picture = Image.new("RGB", (32, 32), "red")
        (alone,) = st3.answer_all(
            model, processor, [{"image": picture, "prompt": words}], max_new_tokens=6
        )
        assert (row["answer"], row["visual_tokens"]) == (alone.answer, 64)
        assert row["kept_visual_tokens"] == alone.kept_visual_tokens
        assert row["seconds"] > 0
    assert len({row["prompt"] for row in rows}) == 5


def test_more_documents_go_on(live: tuple[Any, Any], tmp_path: Path) -> None:
    ask(tmp_path, live, 2)
    _, told = ask(tmp_path, live, 5)
    assert (told.begun, told.noted) == ([(2, 3)], 3)
    run, told = ask(tmp_path, live, 2)  # fewer need nothing
    assert (told.begun[0][1], told.noted) == (0, 0)
    assert len(read_answers(tmp_path, cell(), 2)) == 2
    assert run.errors == 0


def test_a_broken_run_loses_nothing(
    live: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Breaks(Exam):
        def question(self, number: int) -> Question:
            if number == 3:
                raise OSError("the disk went away")
            return super().question(number)

    monkeypatch.setattr("st3.batch.answering._WAITING", 1)  # no rows ahead
    with pytest.raises(OSError, match="went away"):
        answer_cell(
            tmp_path, cell(), Breaks(), lambda: live, Ranks(), Course(), batch_size=1
        )  # fmt: skip
    before = read_answers(tmp_path, cell(), 5)
    assert 0 < len(before) < 5
    ask(tmp_path, live)
    whole, other = read_answers(tmp_path, cell(), 5), tmp_path / "other"
    ask(other, live)
    assert whole[: len(before)] == before
    for one, two in zip(whole, read_answers(other, cell(), 5), strict=True):
        assert {**one, "seconds": 0} == {**two, "seconds": 0}


def test_whatever_decides_the_answers_is_in_the_name(place: Path, tmp_path: Path) -> None:
    names = {
        cell().name, cell(dtype="float32").name, cell(dtype="bfloat16").name, cell("none").name,
        cell("stock").name,
    }  # fmt: skip
    assert len(names) == 5
    assert cell().name == cell().name
    assert cell("st3:tau=8,stride=2").name.startswith("scienceqa_img--st3-tau=8-stride=2--")
    first = model_identity(str(place))
    copy = tiny_checkpoint(tmp_path / "copy")
    assert model_identity(str(copy))["weights"] == first["weights"]
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert model_identity(str(copy))["weights"] != first["weights"]


def test_large_weights_are_known_by_pieces(tmp_path: Path) -> None:
    """One layer's matrix was trained further, in the middle of 80 MiB."""
    (tmp_path / "config.json").write_text('{"model_type": "llava"}', encoding="utf-8")
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.truncate(80 << 20)
    first = model_identity(str(tmp_path))
    assert model_identity(str(tmp_path)) == first
    with path.open("r+b") as file:
        file.seek((40 << 20) + 12_345)
        file.write(b"\1" * (1 << 20))
    assert model_identity(str(tmp_path))["weights"] != first["weights"]


def test_documents_that_cannot_be_asked_are_counted(live: tuple[Any, Any], tmp_path: Path) -> None:
    class Blind(Exam):
        def question(self, number: int) -> Question:
            if number != 1:
                return super().question(number)
            return Question(self.ids[1], "what?", ("/not/there.png",), number=1)

    document = together(tmp_path, live, ["none"], Blind())
    (row,) = document["rows"]
    assert (row["errors"], row["answered"]) == (1, 5)
    assert "error" in read_answers(tmp_path, cell("none"), 5)[1]


def together(folder: Path, live: Any, labels: Sequence[str], exam: Exam) -> dict[str, Any]:
    loads = []

    def load() -> Any:
        loads.append(1)
        return live

    @contextmanager
    def bar(name: str) -> Any:
        yield Bar()

    coster = Coster(live[0].config, 4)
    pairs = [(exam, cell(label)) for label in labels]
    document = evaluate(folder, pairs, load, Ranks(), coster, "7b", bar, batch_size=2)
    assert len(loads) <= 1
    return document


def test_all_cells(live: tuple[Any, Any], tmp_path: Path) -> None:
    exam = Exam()
    document = together(tmp_path, live, ["none", "st3", "stock"], exam)
    none, trimmed, stock = document["rows"]
    assert exam.scored <= 2  # stock's answers are none's
    assert stock["metrics"] == none["metrics"]
    assert (none["published"], trimmed["published"]) == (66.8, None)
    assert trimmed["compared_with"] == "none"
    assert trimmed["test"] == "McNemar"
    assert trimmed["prefill_macs_ratio"] < none["prefill_macs_ratio"] == 1
    assert trimmed["kept_visual_tokens"] < none["kept_visual_tokens"] == 64
    low, high = none["low"], none["high"]
    assert 0 <= low <= none["score"] <= high <= 100
    assert none["tokens_per_second"] > 0
    before = exam.scored
    again = together(tmp_path, live, ["none", "st3", "stock"], exam)
    assert again["rows"] == document["rows"]
    assert exam.scored == before
    document |= {
        "settings": {"model": "tiny", "date": "2026-01-01", "command": "st3 evaluate"},
        "machine": {
            "cpu": "c", "cores": 1, "threads": 1, "torch": "t", "transformers": "f",
            "device": "cpu",
        },
    }  # fmt: skip
    names = album.save_evaluation(tmp_path, document)
    assert "interrupted" in document
    assert all((tmp_path / name).stat().st_size for name in names)
    saved = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    assert saved["rows"][0]["score"] == none["score"]
    (table,) = tables(document["rows"])
    assert [line[0] for line in table.rows] == ["none", "st3", "stock"]
    assert "published" in table.heads
    assert "2310.03744" in (tmp_path / "evaluation.md").read_text(encoding="utf-8")


def test_one_task_that_cannot_score(live: tuple[Any, Any], tmp_path: Path) -> None:
    """Its answers and the other task's score are there."""

    class Broken(Exam):
        name = "mmmu_val"

        def score(self, answers: Sequence[dict[str, Any]], folder: Path) -> Score:
            raise Unscored("the task cannot score its answers (KeyError: 'x')")

    @contextmanager
    def bar(name: str) -> Any:
        yield Bar()

    cells = [replace(cell("none"), task=exam.name) for exam in (Broken, Exam)]
    pairs = list(zip((Broken(), Exam()), cells, strict=True))
    coster = Coster(live[0].config, 4)
    document = evaluate(tmp_path, pairs, lambda: live, Ranks(), coster, "7b", bar)
    broken, whole = document["rows"]
    assert (broken["score"], broken["answered"]) == (None, 5)
    assert whole["score"] is not None
    assert whole["scoring_error"] is None
    (line,) = [line for line in notes(document["rows"]) if "cannot score" in line]
    assert line.startswith("mmmu_val, none: ")
    assert tables(document["rows"])[0].rows[0][1] == "not scored"


@pytest.mark.parametrize(
    ("label", "visual", "kept"),
    [("divprune:keep=64", 1_152, 128), ("prumerge", 576, 71), ("evs:keep=25%", 1_152, 288)],
)
def test_macs_are_of_what_was_kept(
    live: tuple[Any, Any], label: str, visual: int, kept: int
) -> None:
    """Without anything dropped inside: those of an untrimmed prompt that is so much shorter."""

    def answers(visual: int, kept: float) -> list[dict[str, Any]]:
        row = {"prompt_tokens": visual + 20, "visual_tokens": visual, "new_tokens": 4}
        return [row | {"kept_visual_tokens": kept}] * 3

    coster = Coster(live[0].config, 4)
    found = coster.ratios(make_method(label), answers(visual, kept))
    assert found["prefill_macs"] == coster.ratios(None, answers(kept, kept))["prefill_macs"]
    assert 0 < found["kv_ratio"] == pytest.approx((kept + 20) / (visual + 20))


def test_what_others_print_goes_nowhere(capfd: pytest.CaptureFixture[str]) -> None:
    import subprocess

    with hushed():
        print("words")
        print("words", file=sys.stderr)
        subprocess.run([sys.executable, "-c", "print('words')"], check=True)
    with pytest.raises(ValueError, match="seen"), hushed():
        raise ValueError("seen")
    print("said")
    told = capfd.readouterr()
    assert (told.out, told.err) == ("said\n", "")
