"""A whole conversation put before a model at once, as clients of a server send it.

Roles, texts and pictures in any order, in the model's own chat format. A conversation that keeps
its KV cache is `st3.inference.conversation`; one question is `st3.inference.generation`, and
becomes the same tokens here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateSyntaxError
from PIL import Image

from st3.inference.chat import template_of
from st3.inference.fitting import Room
from st3.inference.visuals import check_visual, tokenized


@dataclass(frozen=True)
class Turn:
    """What somebody says.

    Attributes:
        role: `system`, `user` or `assistant`, or what else the template knows.
        parts: texts, and None where a picture stands.
    """

    role: str
    parts: tuple[str | None, ...]

    @property
    def pictures(self) -> int:
        """How many stand in it."""
        return self.parts.count(None)


def transcribed(processor: Any, turns: Sequence[Turn]) -> str:
    """The conversation in the chat format, up to where the next answer begins.

    A template that takes lists of parts gets them, one that takes strings gets a line for each
    part; the first form that gives each picture one place is taken. Where there is no template, it
    is LLaVA-1.5's format.

    Args:
        processor: of the model.
        turns: the last of them is to be answered.

    Raises:
        ValueError: a text that holds a placeholder, or a conversation that the template has no
            words for, as one with roles that do not take turns.
    """
    mark = str(getattr(processor, "image_token", "<image>"))
    marks = {mark, str(getattr(processor, "video_token", None) or mark)}
    for turn in turns:
        for text in turn.parts:
            found = sorted(one for one in marks if text is not None and one in text)
            if found:
                raise ValueError(f"leave {found[0]} out of the text: pictures are put in by itself")
    template, file = template_of(processor)
    if template is None:
        return _llava(turns, mark)
    pictures, why = sum(turn.pictures for turn in turns), ""
    for parts in (True, False):
        chat = [{"role": turn.role, "content": _content(turn, parts, mark)} for turn in turns]
        try:
            text = processor.apply_chat_template(
                chat, chat_template=template, add_generation_prompt=True
            )
        except TemplateSyntaxError as error:
            raise ValueError(
                f"{file} is broken in line {error.lineno} ({error.message})"
            ) from error
        except Exception as error:  # a template is a program, and raises what it likes
            why = why or str(error) or type(error).__name__
            continue
        places = text.count(mark)
        if places == pictures:
            return str(text)
        why = why or f"it gives {pictures} pictures {places} places"
    raise ValueError(f"the model's chat template takes no such conversation: {why}")


def transcript_inputs(
    processor: Any, turns: Sequence[Turn], pictures: Sequence[Image.Image], room: Room
) -> dict[str, Any]:
    """What the processor makes of a conversation.

    Args:
        processor: of the model.
        turns: see `transcribed`.
        pictures: RGB, of all turns, in order.
        room: of the model.

    Raises:
        ValueError: see `transcribed`; a picture that the processor would blow up; or more than the
            model's context holds.
    """
    text = transcribed(processor, turns)
    if pictures:
        check_visual(pictures, processor)
    inputs = tokenized(processor, [pictures], [text])
    length = inputs["input_ids"].shape[1]
    if length >= room.tokens:
        raise ValueError(
            f"the messages make {length} tokens, {room.visual(inputs['input_ids'])} of them "
            f"visual; the model's context is {room.tokens}: send less, or smaller pictures"
        )
    return inputs


def _content(turn: Turn, parts: bool, mark: str) -> Any:
    if not parts:
        return "\n".join(mark if text is None else text for text in turn.parts)
    return [
        {"type": "image"} if text is None else {"type": "text", "text": text} for text in turn.parts
    ]


def _llava(turns: Sequence[Turn], mark: str) -> str:
    words = {"user": "USER: ", "assistant": "ASSISTANT: "}
    said = [words.get(turn.role, "") + _content(turn, False, mark) for turn in turns]
    return " ".join([*said, "ASSISTANT:"])
