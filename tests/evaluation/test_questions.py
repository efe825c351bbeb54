"""Documents of benchmarks as rows: what is said, where pictures stand, how likely an answer is."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import edit, tiny_checkpoint
from PIL import Image

import st3
from st3.batch.answering import batches
from st3.batch.preparing import Preparer
from st3.batch.row import Row
from st3.evaluation.likelihood import Weigher
from st3.evaluation.questions import (
    Part,
    Question,
    QuestionPreparer,
    make_question,
    said,
)
from st3.evaluation.requests import Requests
from st3.inference.fitting import room_of

RED, BLUE = (Image.new("RGB", (40, 30), colour) for colour in ("red", "blue"))
INTERLEAVING = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def user(*parts: Any) -> Any:
    """A user's turn: texts and pictures."""
    return "user", tuple(Part("text" if isinstance(part, str) else "image", part) for part in parts)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = tiny_checkpoint(tmp_path_factory.mktemp("tiny"))
    return st3.load(str(folder), device="cpu", dtype="float32")


def test_pictures_and_a_question_are_a_plain_row() -> None:
    found = make_question(3, "a", (user(RED, BLUE, "Which is red?"),))
    assert (found.number, found.id, found.prompt) == (3, "a", "Which is red?")
    assert (found.images, found.turns, found.problem) == ((RED, BLUE), (), None)
    assert said(found) == "<image>\n<image>\nWhich is red?"


def test_marks_say_where_pictures_stand() -> None:
    found = make_question(0, "a", (user(RED, BLUE, "First <image> then <image>, which?"),))
    ((_, parts),) = found.turns
    assert [part.kind for part in parts] == ["text", "image", "text", "image", "text"]
    assert (parts[1].value, parts[3].value) == (RED, BLUE)
    one = make_question(0, "a", (user(RED, "<image>\nWhat is it?"),))
    assert (one.images, one.prompt) == ((RED,), "What is it?")  # which is where they stand anyway
    unlike = make_question(0, "a", (user(RED, "No <image> or <image>?"),))
    assert unlike.prompt == "No <image> or <image>?"  # refused where it is put into the chat format


def test_a_video_is_a_plain_row(tmp_path: Path) -> None:
    turn = ("user", (Part("video", "clip.mp4"), Part("text", "What happens?")))
    found = make_question(0, "a", (turn,))
    assert (found.video, found.prompt, found.turns) == ("clip.mp4", "What happens?", ())
    beside = ("user", (Part("video", "clip.mp4"), Part("image", RED), Part("text", "What?")))
    assert "video" in str(make_question(0, "a", (beside,)).problem)
    sound = ("user", (Part("audio", b""), Part("text", "What?")))
    assert "audio" in str(make_question(0, "a", (sound,)).problem)


def test_plain_rows_are_prepared_as_ever(live: tuple[Any, Any]) -> None:
    model, processor = live
    row = Row("a", "is there a red circle?", (RED,))
    question = make_question(0, "a", (user(RED, "is there a red circle?"),))
    plain = Preparer(processor, room_of(model))(row)
    found = QuestionPreparer(processor, room_of(model))(question)
    assert plain.problem is found.problem is None
    assert plain.inputs.keys() == found.inputs.keys()
    assert all((plain.inputs[key] == found.inputs[key]).all() for key in plain.inputs)


def test_turns_are_put_as_the_template_says(live: tuple[Any, Any], tmp_path: Path) -> None:
    model, _ = live
    folder = tiny_checkpoint(tmp_path / "other")
    (folder / "chat_template.jinja").write_text(INTERLEAVING, encoding="utf-8")
    _, processor = st3.load(str(folder), device="cpu", dtype="float32")
    prepare = QuestionPreparer(processor, room_of(model))
    turns = (user("a", RED, "blue", BLUE, "?"), ("assistant", (Part("text", "red"),)), user("why?"))
    found = prepare(make_question(0, "a", turns))
    assert found.problem is None
    assert found.visual == 128
    ids, mark = found.inputs["input_ids"][0].tolist(), model.config.image_token_id
    first, last = ids.index(mark), len(ids) - ids[::-1].index(mark)
    gap = [token for token in ids[first:last] if token != mark]
    assert processor.tokenizer.decode(gap) == "blue"
    assert found.inputs["pixel_values"].shape[0] == 2
    blind = prepare(make_question(1, "b", (user("is it red?"),)))
    assert (blind.problem, blind.visual) == (None, 0)
    assert "pixel_values" not in blind.inputs


def test_what_cannot_be_put_is_a_problem(live: tuple[Any, Any], tmp_path: Path) -> None:
    model, _ = live
    folder = tiny_checkpoint(tmp_path / "other")
    (folder / "chat_template.jinja").unlink()
    for file in ("tokenizer_config.json", "processor_config.json"):
        edit(folder, file, "chat_template")
    _, processor = st3.load(str(folder), device="cpu", dtype="float32")
    found = QuestionPreparer(processor, room_of(model))(
        make_question(0, "a", (user("a", RED, "b"),))
    )
    assert "chat template" in str(found.problem)
    many = make_question(0, "a", (user("a", *[RED] * 40, "b"),))
    _, processor = live
    assert "the model's context is" in str(
        QuestionPreparer(processor, room_of(model))(many).problem
    )


def request(kind: str, *arguments: Any, idx: int = 0) -> Any:
    """As lmms-eval makes them, for document 7 of a task."""
    return SimpleNamespace(
        request_type=kind, args=(*arguments, 7, "task", "test"), task_name="task", doc_id=7, idx=idx
    )


DATA = {"task": {"test": {7: {"image": RED, "answer": " red"}}}}


def test_requests_of_both_kinds_of_tasks() -> None:
    how = {"max_new_tokens": 9, "until": ["USER:", "\n\n"]}
    plain = request("generate_until", "Is it red?", how, lambda doc: [doc["image"]])
    chat = request(
        "generate_until", "unused",
        lambda doc: [
            {
                "role": "user",
                "content": [
                    {"type": "image", "url": doc["image"]}, {"type": "text", "text": "Is it red?"},
                ],
            }
        ],
        how,
    )  # fmt: skip
    for one in (plain, chat):
        found = Requests([one], DATA)
        assert (found.name, found.ids, found.tokens) == ("task", ["7"], 9)
        assert not found.weighing
        asked = found.question(0)
        assert (asked.images, asked.prompt) == ((RED,), "Is it red?")
        # The blank line is lmms-eval's, which fills it in where a task names no stop word.
        assert found.cut(" a\n\nb USER: c") == "a\n\nb"


def test_requests_for_likelihoods() -> None:
    shown = lambda doc: doc["image"]  # noqa: E731
    words = [" blue", lambda doc: doc["answer"]]
    made = [request("loglikelihood", "Is it", one, shown, idx=n) for n, one in enumerate(words)]
    found = Requests(made, DATA)
    assert found.weighing
    assert found.ids == ["7", "7.1"]
    assert [found.question(n).continuation for n in range(2)] == [" blue", " red"]
    assert said(found.question(0)) != said(found.question(1))


WORDS = ("red", "blue circle", "a green square", "circle circle circle circle")


def weigh(live: tuple[Any, Any], method: Any, **more: Any) -> list[Any]:
    model, processor = live
    rows = [
        Question(n, f"is there a red circle{'?' * (n % 3)}", (RED,), number=n, continuation=word)
        for n, word in enumerate(WORDS)
    ]
    found = [
        result
        for some in batches(
            model, processor, rows, method, preparing=QuestionPreparer, asking=Weigher,
            max_new_tokens=8, **more,
        )
        for result in some
    ]  # fmt: skip
    return sorted(found, key=lambda result: result.number)


def test_likelihoods_are_those_of_one_forward(live: tuple[Any, Any]) -> None:
    """The oracle feeds prompt and continuation at once, and knows no `generate`."""
    model, processor = live
    stock = weigh(live, None)
    for result, word in zip(stock, WORDS, strict=True):
        prompt = f"is there a red circle{'?' * (result.number % 3)}"
        inputs = Preparer(processor, room_of(model))(Row(0, prompt, (RED,))).inputs
        ids = torch.from_numpy(inputs["input_ids"])
        more = torch.tensor([processor.tokenizer(word, add_special_tokens=False)["input_ids"]])
        with torch.inference_mode():
            logits = model(
                input_ids=torch.cat((ids, more), 1),
                pixel_values=torch.from_numpy(inputs["pixel_values"]),
            ).logits[0, ids.shape[1] - 1 : -1]
        told = logits.log_softmax(-1)
        wanted = told.gather(1, more[0][:, None])
        assert result.loss == pytest.approx(-float(wanted.mean()), abs=1e-4)
        assert result.greedy == bool((told.argmax(-1) == more[0]).all())
        assert (result.new_tokens, result.error) == (more.shape[1], None)


def test_untrimmed_likelihoods_are_stocks_to_the_last_bit(live: tuple[Any, Any]) -> None:
    def figures(method: Any) -> list[Any]:
        return [(result.loss, result.greedy) for result in weigh(live, method, batch_size=1)]

    assert figures("none") == figures(None)
    assert figures("st3:tau=4") != figures(None)


def test_likelihoods_are_alike_in_batches(live: tuple[Any, Any]) -> None:
    for method in (None, "st3:tau=4"):
        alone, together = (weigh(live, method, batch_size=size) for size in (1, 4))
        for one, other in zip(alone, together, strict=True):
            assert one.loss == pytest.approx(other.loss, abs=1e-4)
            assert one.kept_visual_tokens == other.kept_visual_tokens


def test_a_continuation_of_nothing_is_refused(live: tuple[Any, Any]) -> None:
    model, processor = live
    row = Question(0, "is it red?", (RED,), number=0, continuation=" ")
    with pytest.raises(ValueError, match="without a token"):
        list(
            batches(model, processor, [row], None, preparing=QuestionPreparer, asking=Weigher)
        )  # fmt: skip
