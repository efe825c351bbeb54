"""A document of a benchmark as a row of a batch: what is said and shown, in whatever order.

Most documents show pictures or a video and then ask: those are rows as `st3 batch` knows them.
Others put pictures between words, show none, or are a conversation: these are `turns`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from st3.batch.preparing import Preparer, open_any
from st3.batch.row import Result, Row
from st3.inference.visuals import check_visual, tokenized

MARK = "<image>"
"""Where a picture stands in a task's text, as lmms-eval's tasks write it for every model."""


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of what is said.

    Attributes:
        kind: `text`, `image` or `video`.
        value: the text, or whatever `Row` takes for one.
    """

    kind: str
    value: Any


Turns = tuple[tuple[str, tuple[Part, ...]], ...]
"""Role -> parts, in order."""


@dataclass(frozen=True, slots=True)
class Question(Row):
    """A row whose pictures may stand anywhere.

    Attributes:
        turns: what is said in place of `images`, `video` and `prompt`; empty where those say it.
        continuation: whose likelihood is asked for; None where an answer is.
    """

    turns: Turns = ()
    continuation: str | None = None


@dataclass(frozen=True, slots=True)
class Answer(Result):
    """A result with what a later run wants to know.

    Attributes:
        prompt: a hash of what was said.
        seconds: this row's share of its batch's time, in prefill and decode.
    """

    prompt: str = ""
    seconds: float = 0.0

    def document(self) -> dict[str, Any]:
        """A line of the answers file."""
        line = Result.document(self)
        return line | {"prompt": self.prompt, "seconds": round(self.seconds, 6)}


def make_question(number: int, name: str | int, turns: Turns) -> Question:
    """A row from what a task says; what is wrong with it becomes its `problem`.

    Args:
        number: its place among all. `name`: its id.
        turns: `MARK` in a text is where the turn's next picture stands, if there are as many.
    """
    found = tuple((role, _placed(parts)) for role, parts in turns)
    (role, parts), kinds = found[-1], [part.kind for part in found[-1][1]]
    if odd := sorted({part.kind for _, some in found for part in some} - _KINDS):
        return Question(
            name, "", number=number, problem=f"it has {odd[0]}, which st3 does not take"
        )
    if len(found) > 1 or role != "user" or kinds.count("text") != 1 or kinds[-1] != "text":
        plain = False
    else:
        plain = kinds[:-1] == ["video"] or (len(kinds) > 1 and set(kinds[:-1]) == {"image"})
    if not plain:
        problem = None
        if any(part.kind == "video" for _, some in found for part in some):
            problem = "its video stands between words, or beside other things that are shown"
        return Question(name, "", number=number, turns=found, problem=problem)
    shown, text = [part.value for part in parts[:-1]], parts[-1].value
    if kinds[0] == "video":
        return Question(name, text, video=shown[0], number=number)
    return Question(name, text, images=tuple(shown), number=number)


_KINDS = {"text", "image", "video"}


def _placed(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Pictures at the marks in the texts, if there are as many, and else before them."""
    images = [part for part in parts if part.kind == "image"]
    texts = [part for part in parts if part.kind == "text"]
    marks = sum(part.value.count(MARK) for part in texts)
    if not marks or marks != len(images):
        return tuple(parts)
    coming, found = iter(images), [part for part in parts if part.kind not in ("image", "text")]
    for text in texts:
        for number, piece in enumerate(text.value.split(MARK)):
            if number:
                found.append(next(coming))
            if piece.strip():
                found.append(Part("text", piece.strip("\n") if number else piece))
    return tuple(found)


def said(question: Question) -> str:
    """All words of a question, and where something is shown: what `prompt` is a hash of."""
    if question.continuation is not None:
        return f"{said(replace(question, continuation=None))}\n{question.continuation}"
    if not question.turns:
        what = "video" if question.video is not None else "image"
        shown = [f"<{what}>"] * (len(question.images) or 1)
        return "\n".join((*shown, question.prompt))
    return "\n".join(
        part.value if part.kind == "text" else f"<{part.kind}>"
        for role, parts in question.turns
        for part in (Part("text", f"[{role}]"), *parts)
    )


def fingerprint(text: str) -> str:
    """A short hash."""
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]


class QuestionPreparer(Preparer):
    """Makes questions ready, and rows."""

    def inputs(self, row: Row) -> dict[str, Any]:
        """What the processor makes of it.

        Raises:
            Exception: whatever is wrong.
        """
        if not isinstance(row, Question) or not row.turns:
            return Preparer.inputs(self, row)
        images = [
            open_any(part.value) for _, parts in row.turns for part in parts if part.kind == "image"
        ]
        if images:
            check_visual(images, self.processor)
        text = in_turns(self.processor, row.turns)
        made = tokenized(self.processor, [images], [text])
        length, limit = made["input_ids"].shape[1], self.room.tokens
        if length >= limit:
            seen = self.room.visual(made["input_ids"])
            raise ValueError(
                f"{len(images)} pictures and prompt make {length} tokens, {seen} of them visual; "
                f"the model's context is {limit}"
            )
        return made


def in_turns(processor: Any, turns: Turns) -> str:
    """Turns in the model's chat format, a place in it for each picture.

    Where a template puts a message's pictures in front of its words, as LLaVA-1.5's does, so it is.

    Raises:
        ValueError: no chat template, or one that makes no such conversation.
    """
    if processor.chat_template is None and processor.tokenizer.chat_template is None:
        raise ValueError(
            "this checkpoint has no chat template, without which pictures between words, several "
            "turns and questions without a picture cannot be put: copy chat_template.jinja from "
            "the checkpoint that it was made of"
        )
    mark = str(getattr(processor, "image_token", MARK))
    count = sum(part.kind == "image" for _, parts in turns for part in parts)
    why = ""
    for listed in (True, False):
        try:
            text: str = processor.apply_chat_template(
                [{"role": role, "content": _content(parts, mark, listed)} for role, parts in turns],
                add_generation_prompt=True,
            )
        except Exception as error:  # a template is a program, and raises what it likes
            why = why or str(error) or type(error).__name__
            continue
        if text.count(mark) == count and all(
            part.value.strip() in text
            for _, parts in turns
            for part in parts
            if part.kind == "text"
        ):
            return text
        why = why or f"it has {text.count(mark)} places for {count} pictures, or leaves words out"
    raise ValueError(f"the checkpoint's chat template makes no such conversation ({why})")


def _content(parts: Sequence[Part], mark: str, listed: bool) -> Any:
    if listed:
        return [
            {"type": "text", "text": part.value} if part.kind == "text" else {"type": part.kind}
            for part in parts
        ]
    return "\n".join(part.value if part.kind == "text" else mark for part in parts)
