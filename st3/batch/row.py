"""A question among many, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from st3.files import valid

KEYS = ("id", "image", "images", "video", "prompt")
"""What a row may be made of; other columns are left alone."""
NOTHING = "shows nothing: it needs an image, images or a video"


@runtime_checkable
class Stored(Protocol):
    """A picture inside another file: small, and read where it is needed, in whatever process."""

    def read(self) -> tuple[bytes, str]:
        """Its bytes, and what to call it."""
        ...


@dataclass(frozen=True, slots=True)
class Row:
    """One question.

    Attributes:
        id: of the user's; unique.
        prompt: without any chat format.
        images: in their order; each a path, a URL, bytes, a PIL picture or a `Stored`.
        video: in place of images, a path or a URL.
        number: from 0, its place among all.
        problem: why it cannot be asked, in a line; None if it can.
    """

    id: str | int
    prompt: str
    images: tuple[Any, ...] = ()
    video: Any = None
    number: int = 0
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a row.

    Attributes:
        number, id: the row's.
        answer: None where there is an error.
        error: one line that says what is wrong with the row; None where there is an answer.
        prompt_tokens, visual_tokens: of the prompt, before anything was dropped.
        kept_visual_tokens: at the end of prefill, the mean over layers.
        new_tokens: of the answer, its end token included.
        finish_reason: `stop` where the model ended it, `length` where the number of tokens did.
    """

    number: int
    id: str | int
    answer: str | None = None
    error: str | None = None
    prompt_tokens: int | None = None
    visual_tokens: int | None = None
    kept_visual_tokens: float | None = None
    new_tokens: int | None = None
    finish_reason: str | None = None
    token_ids: tuple[int, ...] = field(default=(), repr=False)

    def document(self) -> dict[str, Any]:
        """The same as a line of the results: `row`, `id`, and the answer's keys or `error`."""
        head: dict[str, Any] = {"row": self.number, "id": self.id}
        if self.error is not None:
            return head | {"error": self.error}
        return head | {
            "answer": self.answer,
            "prompt_tokens": self.prompt_tokens,
            "visual_tokens": self.visual_tokens,
            "kept_visual_tokens": self.kept_visual_tokens,
            "new_tokens": self.new_tokens,
            "finish_reason": self.finish_reason,
        }


COLUMNS = (
    "row", "id", "answer", "prompt_tokens", "visual_tokens", "kept_visual_tokens", "new_tokens",
    "finish_reason", "error",
)  # fmt: skip
"""Of a table of results."""


def make_row(columns: Mapping[str, Any], number: int, prompt: str | None = None) -> Row:
    """A row from columns of a table; what is wrong with it becomes its `problem`.

    Args:
        columns: some of `KEYS`: one of `image`, `images` and `video`; `prompt`, `id`.
        number: its place, and its id where it has none.
        prompt: asked where it has none of its own.
    """
    own = columns.get("prompt")
    asked = own if own is not None else prompt
    name = columns.get("id")
    name = number if name is None else name
    if isinstance(name, bool) or not isinstance(name, (str, int)):
        name = str(name)
    images, video, problem = _shown(columns)
    if problem is None:
        problem = _unasked(asked)
    return Row(name, asked if isinstance(asked, str) else "", images, video, number, problem)


def _unasked(prompt: Any) -> str | None:
    """Why a prompt cannot be asked; None if it can."""
    if not isinstance(prompt, str):
        return "it has no prompt"
    if not prompt.strip():
        return "its prompt is empty"
    if valid(prompt) != prompt:
        return "its prompt is no valid text: it has halves of letters (lone surrogates)"
    return None


def _shown(columns: Mapping[str, Any]) -> tuple[tuple[Any, ...], Any, str | None]:
    """Pictures, a video, or why there are none."""
    given = [key for key in ("image", "images", "video") if columns.get(key) is not None]
    if not given:
        return (), None, f"it {NOTHING}"
    if len(given) > 1:
        return (), None, f"it has both {given[0]} and {given[1]}: give one of them"
    value = columns[given[0]]
    if given[0] == "video":
        return (), value, None if isinstance(value, str) and value else "its video is no path"
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        images = tuple(value)
    else:
        images = (value,)
    if not images or any(image is None or image == "" for image in images):
        return (), None, f"its {given[0]} is empty"
    wrong = next((type(x).__name__ for x in images if isinstance(x, (int, float, dict))), None)
    return images, None, None if wrong is None else f"its {given[0]} is no path, but {wrong}"
