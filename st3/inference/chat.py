"""What is said to a model as it was taught to be asked: in its chat format.

A question about pictures or a video, or a later turn of a conversation. That must go on where the
KV cache ends, token for token, so nothing that was said is put into words again: the template is
asked about a conversation with a mark in place of the answer; what it writes behind that is fed.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateSyntaxError
from transformers import ProcessorMixin

_MARK = "\N{LEFT CEILING}answer\N{RIGHT CEILING}"


@dataclass(frozen=True)
class Message:
    """What a user says.

    Attributes:
        text: without any chat format.
        pictures: how many come before it.
        video: whether one video does, in their place.
    """

    text: str
    pictures: int = 1
    video: bool = False

    @property
    def kind(self) -> str:
        """`image` or `video`."""
        return "video" if self.video else "image"

    @property
    def count(self) -> int:
        """Placeholders before it."""
        return 1 if self.video else self.pictures

    def mark(self, processor: Any) -> str:
        """The placeholder."""
        return str(getattr(processor, f"{self.kind}_token", f"<{self.kind}>"))

    def plain(self, processor: Any) -> str:
        """All of it in one text."""
        return f"{self.mark(processor)}\n" * self.count + self.text


def in_chat_format(
    processor: ProcessorMixin, prompt: str, pictures: int = 1, *, video: bool = False
) -> str:
    """The prompt in the chat format, with one placeholder for each picture, or for the video.

    Templates of multimodal models take a message as a list of parts, those of text models as a
    string; the first form that gives each picture one place is taken. Where there is no template,
    it is LLaVA-1.5's format, with a warning.

    Args:
        processor: of the model.
        prompt: the question.
        pictures: how many come before it.
        video: whether one video does, in their place.

    Raises:
        ValueError: an empty prompt, one that holds a placeholder, or a chat template that is broken
            or has no place for a picture or a video.
    """
    return written(processor, [Message(prompt, pictures, video)])


def written(processor: Any, messages: Sequence[Message]) -> str:
    """The last of some messages in the chat format; with what ends the answer to the one before.

    Args:
        processor: of the model.
        messages: the first of a conversation, or two that follow each other.

    Raises:
        ValueError: see `in_chat_format`.
    """
    said = messages[-1]
    what, mark = "video" if said.video else "picture", said.mark(processor)
    if not said.text.strip():
        raise ValueError("the prompt is empty: ask something, e.g. 'What do you see?'")
    if mark in said.text:
        raise ValueError(f"leave {mark} out of the prompt: the {what} is put in by itself")
    template, file = template_of(processor)
    if template is None:
        warnings.warn(
            "this checkpoint has no chat template, so the question is put as LLaVA-1.5 was taught "
            "to take it; copy chat_template.jinja from the checkpoint that it was made of",
            stacklevel=3,
        )
        return " " * (len(messages) > 1) + f"USER: {said.plain(processor)} ASSISTANT:"
    refused, misplaced = "", ""
    for parts, chosen in (
        (True, template),
        (False, template),
        *([(True, None)] if said.video else []),  # some processors have one of their own for it
    ):
        try:
            text: str = processor.apply_chat_template(
                _chat(processor, messages, parts), chat_template=chosen, add_generation_prompt=True
            )
        except TemplateSyntaxError as error:
            raise ValueError(
                f"{file} is broken in line {error.lineno} ({error.message}): mend it, or take it "
                "from the checkpoint that this one was made of"
            ) from error
        except Exception as error:  # a template is a program, and raises what it likes
            refused = str(error) or type(error).__name__
            continue
        if len(messages) > 1:
            _, found, text = text.rpartition(_MARK)
            if not found:
                misplaced = misplaced or "it leaves out what was answered"
                continue
        places = text.count(mark)
        if places == said.count:
            return text
        has = f"it has {places or 'no'} place{'s' * (places > 1)} for "
        misplaced = misplaced or has + ("it" if said.count == 1 else f"{said.count} pictures")
    raise ValueError(
        f"{file} makes no question about a {what} ({misplaced or refused}): let it write "
        f"{mark} once for each part of type {said.kind}"
    )


def _chat(processor: Any, messages: Sequence[Message], parts: bool) -> list[dict[str, Any]]:
    """With lists of parts or strings as contents, and the mark for every answer."""
    chat: list[dict[str, Any]] = []
    for said in messages:
        if chat:
            answer: Any = [{"type": "text", "text": _MARK}] if parts else _MARK
            chat.append({"role": "assistant", "content": answer})
        shown = [{"type": said.kind}] * said.count
        content: Any = [*shown, {"type": "text", "text": said.text}]
        chat.append({"role": "user", "content": content if parts else said.plain(processor)})
    return chat


def template_of(processor: Any) -> tuple[str | None, str]:
    """The processor's chat template, or its tokenizer's, and the file where it belongs."""
    found, file = processor.chat_template, "chat_template.jinja"
    if found is None:
        found, file = processor.tokenizer.chat_template, "tokenizer_config.json"
    return found.get("default") if isinstance(found, dict) else found, file
