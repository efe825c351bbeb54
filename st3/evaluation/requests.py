"""Requests of lmms-eval as questions: what its tasks say and show, read when it is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from st3.evaluation.questions import Part, Question, Turns, make_question

LONGEST = 1024
"""Tokens of an answer, where a task does not say (as lmms-eval's own models)."""
_FILLED_IN = "\n\n"  # what lmms-eval puts where a task names no stop words; its models leave it out
_FILM = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".gif", ".flv", ".mpg", ".mpeg", ".m4v")


class Requests:
    """Requests of one task and of one kind.

    Args:
        instances: lmms-eval's, at least one.
        data: task -> split -> documents.

    Attributes:
        name, ids, tokens, weighing, settings: see `st3.evaluation.run.Exam`.
    """

    def __init__(self, instances: Sequence[Any], data: Mapping[str, Any]) -> None:
        self._instances, self._data = instances, data
        first = instances[0]
        self.name = str(first.task_name)
        self.ids: Sequence[str] = [
            f"{one.doc_id}.{one.idx}" if one.idx else str(one.doc_id) for one in instances
        ]
        self.weighing = first.request_type == "loglikelihood"
        self.tokens = LONGEST if self.weighing else self.tokens_of(first)
        self.until = () if self.weighing else _until(first)
        self.settings: dict[str, Any] = {}

    @staticmethod
    def tokens_of(request: Any) -> int:
        """Of its answer, at most."""
        return int(_asked(request).get("max_new_tokens") or LONGEST)

    def cut(self, answer: str) -> str:
        """An answer up to the task's first stop word."""
        for word in self.until:
            answer = answer.split(word)[0]
        return answer.strip()

    def question(self, number: int) -> Question:
        """One request; what it shows is read now."""
        request = self._instances[number]
        text, second, third, *where = request.args
        if self.weighing:
            doc, show = self._document(where), third
            continuation = second(doc) if callable(second) else second
            turns = _plain(text, show(doc))
            found = make_question(number, self.ids[number], turns)
            return replace(found, continuation=str(continuation))
        if isinstance(second, Mapping):  # a plain task: text, settings, pictures
            turns = _plain(text, third(self._document(where)))
        else:  # a chat task: text, messages, settings
            turns = _chat(second(self._document(where)))
        return make_question(number, self.ids[number], turns)

    def _document(self, where: Sequence[Any]) -> Any:
        number, task, split = where
        return self._data[task][split][number]


def _asked(request: Any) -> Mapping[str, Any]:
    """How a task wants its answers generated."""
    return next((one for one in request.args[1:3] if isinstance(one, Mapping)), {})


def _until(request: Any) -> tuple[str, ...]:
    found = _asked(request).get("until") or ()
    words = (found,) if isinstance(found, str) else tuple(found)
    return tuple(word for word in words if word and word != _FILLED_IN)


def _plain(text: Any, shown: Any) -> Turns:
    """Pictures, then the text; the text says where they stand if it has marks."""
    parts = [_part(one) for one in _flat(shown)]
    return (("user", (*parts, Part("text", str(text)))),)


def _chat(messages: Sequence[Mapping[str, Any]]) -> Turns:
    return tuple((one["role"], tuple(_piece(piece) for piece in _pieces(one))) for one in messages)


def _pieces(message: Mapping[str, Any]) -> Sequence[Any]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _piece(piece: Mapping[str, Any]) -> Part:
    kind = str(piece["type"])
    return Part(kind, piece["text"] if kind == "text" else piece.get("url", piece.get(kind)))


def _part(shown: Any) -> Part:
    if isinstance(shown, Image.Image):
        return Part("image", shown)
    if isinstance(shown, str):
        return Part("video" if shown.lower().endswith(_FILM) else "image", shown)
    return Part("audio" if isinstance(shown, Mapping) and "array" in shown else "unknown", shown)


def _flat(shown: Any) -> list[Any]:
    if shown is None:
        return []
    if isinstance(shown, (list, tuple)):
        return [each for one in shown for each in _flat(one)]
    return [shown]
