"""`st3.answer_all`: every row its answer, as if it were alone, whatever becomes of the others."""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import tiny_checkpoint
from killers import Deadly, Harmless, Weighing
from PIL import Image

import st3
from st3 import demo
from st3.batch import answering, asking
from st3.batch.ahead import prepared
from st3.batch.asking import Course
from st3.batch.row import Row
from st3.demo.held_out import held_out
from st3.inference.generation import answer
from st3.methods import make_method


@pytest.fixture(scope="module")
def packaged() -> Any:
    return st3.load("demo", device="cpu")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Random weights, for what does not ask what is answered."""
    return st3.load(str(tiny_checkpoint(tmp_path_factory.mktemp("tiny"))), device="cpu")


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [
        {"id": f"q{number}", "image": asked.picture, "prompt": asked.question.prompt}
        for number, asked in enumerate(itertools.islice(held_out(1, 0), 5))
    ]


@pytest.mark.parametrize("method", [None, "st3"])
def test_each_answer_is_the_one_it_gets_alone(packaged: Any, rows: Any, method: str | None) -> None:
    course = Course()
    found = list(
        st3.answer_all(*packaged, rows, method, max_new_tokens=20, batch_size=4, course=course)
    )
    assert [result.id for result in found] == [row["id"] for row in rows]
    for row, result in zip(rows, found, strict=True):
        known = None if method is None else make_method(method)
        alone = answer(*packaged, row["image"], row["prompt"], known, max_new_tokens=20)
        assert result.answer == alone.text
        assert result.new_tokens == alone.new_tokens
        assert result.prompt_tokens == alone.prompt_tokens
        assert result.finish_reason == ("stop" if alone.ended else "length")
        if alone.session is not None:
            kept = alone.session.kept_per_layer()
            assert result.visual_tokens == alone.session.visual_tokens[0] == 576
            assert result.kept_visual_tokens == pytest.approx(sum(kept) / len(kept), abs=0.01)
    assert course.answered == 5
    assert course.new_tokens == sum(result.new_tokens or 0 for result in found)
    assert min(course.pictures, course.prefill, course.decode) > 0
    assert sum(course.shares().values()) == pytest.approx(1)
    assert (course.fit is None) == (method is None)
    if course.fit is not None:
        assert course.fit.untrimmed_kv_bytes > 2 * course.fit.kv_bytes
        assert "times as many rows" in str(course.fit)


def test_broken_rows_are_errors_of_theirs_alone(tiny: Any, rows: Any, tmp_path: Any) -> None:
    (tmp_path / "broken.png").write_bytes(demo.PICTURE.read_bytes()[:200])
    broken = [
        {"image": str(tmp_path / "broken.png"), "prompt": "q"},
        {"image": str(tmp_path / "nowhere.png"), "prompt": "q"},
        {"image": rows[0]["image"], "prompt": "<image>"},
        {"image": rows[0]["image"], "prompt": "the " * 3000},
        {"image": 3, "prompt": "q"},
        {"prompt": "q"},
        {"image": Image.new("RGB", (1, 9000)), "prompt": "q"},
    ]
    found = list(st3.answer_all(*tiny, [*broken, rows[0]], max_new_tokens=2))
    said = ("damaged", "no file", "leave <image> out", "context", "int", "shows nothing")
    for result, words in zip(found, said, strict=False):
        assert words in (result.error or "")
        assert "\n" not in result.error
        assert result.document().keys() == {"row", "id", "error"}
    assert found[-1].error is None


def test_a_row_that_is_none_and_numbers_that_are_too_small(tiny: Any, rows: Any) -> None:
    found = list(st3.answer_all(*tiny, ["a.png", rows[0], None], max_new_tokens=1))
    assert [result.error is None for result in found] == [False, True, False]
    assert [result.id for result in found] == [0, "q0", 2]
    assert "a mapping or a Row, and this is of type str" in str(found[0].error)
    for wrong in ({"batch_size": 0}, {"workers": -1}, {"max_new_tokens": 0}):
        ((name, value),) = wrong.items()
        with pytest.raises(ValueError, match=f"^{name}={value}: give at least"):
            list(st3.answer_all(*tiny, rows, **wrong))


def test_it_reads_no_further_than_it_must(tiny: Any, rows: Any) -> None:
    read = 0

    def endless() -> Iterator[dict[str, Any]]:
        nonlocal read
        while True:
            read += 1
            yield rows[0] | {"id": read}

    given = st3.answer_all(*tiny, endless(), max_new_tokens=1, batch_size=2)
    assert [result.id for result in itertools.islice(given, 3)] == [1, 2, 3]
    assert read < 15
    given.close()
    assert st3.trim  # the model is as it was
    assert "forward" not in vars(tiny[0].model.language_model)


class _Limited:
    """`decode_rows` on a device whose memory holds three rows, or with a row that it refuses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int = 99, refuse: str = "-") -> None:
        self.most, self.refuse = most, refuse
        self.sizes: list[int] = []
        self.real = asking.decode_rows
        monkeypatch.setattr(asking, "decode_rows", self)

    def __call__(self, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
        self.sizes.append(len(inputs))
        if len(inputs) > self.most:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        if any(self.refuse == str(row["input_ids"].shape[1]) for row in inputs):
            raise ValueError("the model\ndoes not like it")
        return self.real(model, inputs, *rest, **more)


def test_memory_that_runs_out_halves_batches_and_is_remembered(
    tiny: Any, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited = _Limited(monkeypatch, most=3)
    many = [rows[0] | {"id": number} for number in range(26)]
    found = list(st3.answer_all(*tiny, many, max_new_tokens=1))
    assert [result.id for result in found] == list(range(26))
    assert all(result.error is None for result in found)
    assert limited.sizes[:3] == [4, 2, 2]
    assert set(limited.sizes[3:]) == {2}


def test_memory_that_never_suffices(tiny: Any, rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _Limited(monkeypatch, most=0)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(st3.answer_all(*tiny, rows, max_new_tokens=1))


def test_a_row_that_the_model_refuses(
    tiny: Any, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = rows[0] | {"id": "bad", "prompt": "is there a red square, or a blue one, or a green one?"}
    wanted = next(st3.answer_all(*tiny, [bad], max_new_tokens=1)).prompt_tokens
    _Limited(monkeypatch, refuse=str(wanted))
    found = list(st3.answer_all(*tiny, [rows[0], bad, rows[1]], max_new_tokens=1))
    assert [result.error for result in found] == [None, "the model does not like it", None]
    with pytest.raises(ValueError, match="does not like"):  # of all: then it is not the row
        list(st3.answer_all(*tiny, [bad], max_new_tokens=1))


def test_no_pad_token_is_one_at_a_time(tiny: Any, rows: Any, monkeypatch: Any) -> None:
    limited = _Limited(monkeypatch)
    monkeypatch.setattr(tiny[1].tokenizer, "_pad_token", None, raising=False)
    monkeypatch.setattr(answering, "pads", lambda processor: False)
    assert len(list(st3.answer_all(*tiny, rows[:3], max_new_tokens=1))) == 3
    assert limited.sizes == [1, 1, 1]


def test_a_method_with_parameters_and_an_unknown_one(tiny: Any, rows: Any) -> None:
    found = list(st3.answer_all(*tiny, rows[:1], "fastv", k=2, r=0.75, max_new_tokens=1))
    assert found[0].kept_visual_tokens < 64
    with pytest.raises(ValueError, match="unknown method"):
        list(st3.answer_all(*tiny, rows[:1], "nonsense"))


def test_trimming_that_stays_open_over_all_batches(tiny: Any, rows: Any) -> None:
    """As recorded steps ask; without a GPU a warning says that nothing is recorded."""
    want = list(st3.answer_all(*tiny, rows[:3], max_new_tokens=5, batch_size=2))
    given = st3.answer_all(*tiny, rows[:3], max_new_tokens=5, batch_size=2, cuda_graphs=True)
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        assert list(given) == want
    assert list(st3.answer_all(*tiny, rows[:3], max_new_tokens=5, batch_size=2)) == want


def test_a_picture_that_kills_its_worker(tiny: Any) -> None:
    """Workers give what no workers give, and one that dies costs the row that killed it."""
    shown = [
        Harmless(), Deadly(), Harmless(), "/nowhere.png", Deadly(), lambda: "not to be sent",
        Harmless(),
    ]  # fmt: skip
    asked = [Row(f"r{n}", "how many?", (image,)) for n, image in enumerate(shown)]
    found = list(st3.answer_all(*tiny, asked, max_new_tokens=4, workers=1))
    assert [result.id for result in found] == [f"r{n}" for n in range(7)]
    wrong = {n: result.error for n, result in enumerate(found) if result.error is not None}
    assert wrong.keys() == {1, 3, 4, 5}
    assert all("was killed" in wrong[n] for n in (1, 4))
    assert "no file" in wrong[3]
    assert "pickle" in wrong[5]
    here = next(st3.answer_all(*tiny, asked[:1], max_new_tokens=4))
    assert {result.answer for result in found if result.error is None} == {here.answer}


@pytest.mark.parametrize("method", [None, make_method("st3")])
def test_parameters_of_no_named_method_are_refused(tiny: Any, rows: Any, method: Any) -> None:
    """A misspelt `batch_size` among them."""
    with pytest.raises(ValueError, match="leave out batchsize"):
        list(st3.answer_all(*tiny, rows, method, batchsize=2))


@pytest.mark.parametrize(("room", "most"), [(5, 6), (0, 2), (99, 20)])
def test_what_is_ready_ahead_is_bounded_by_its_bytes(tmp_path: Any, room: int, most: int) -> None:
    """While nobody takes: one that was taken, and those that find room, of 20 at a time at most."""
    size = 1000
    rows = [Row(n, "heavy", number=n) for n in range(40)]
    preparer: Any = Weighing(tmp_path, size)
    coming = prepared(rows, preparer, 1, 20, room * size)

    def ready() -> int:
        return len(list(tmp_path.iterdir()))

    found = [next(coming)]
    end = time.monotonic() + 60
    while ready() < most:
        assert time.monotonic() < end, "it stood still"
        time.sleep(0.01)
    time.sleep(0.3)
    assert most <= ready() <= most + 2  # of the first ones nobody knew how large they were
    found += coming
    assert [one.row.id for one in found] == [*range(40)]
    assert all(one.bytes == size for one in found)
