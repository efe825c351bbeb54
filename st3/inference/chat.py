"""A question about pictures or a video as a model was taught to be asked: in its chat format."""

from __future__ import annotations

import warnings
from typing import Any

from jinja2 import TemplateSyntaxError
from transformers import ProcessorMixin


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
    if not prompt.strip():
        raise ValueError("the prompt is empty: ask something, e.g. 'What do you see?'")
    kind, count = ("video", 1) if video else ("image", pictures)
    what = "video" if video else "picture"
    mark = getattr(processor, f"{kind}_token", f"<{kind}>")
    if mark in prompt:
        raise ValueError(f"leave {mark} out of the prompt: the {what} is put in by itself")
    template, file = _template(processor)
    if template is None:
        warnings.warn(
            "this checkpoint has no chat template, so the question is put as LLaVA-1.5 was taught "
            "to take it; copy chat_template.jinja from the checkpoint that it was made of",
            stacklevel=2,
        )
        return f"USER: {_lines(mark, count)}{prompt} ASSISTANT:"
    parts = [*[{"type": kind}] * count, {"type": "text", "text": prompt}]
    refused, misplaced = "", ""
    for content, chosen in (
        (parts, template),
        (f"{_lines(mark, count)}{prompt}", template),
        *([(parts, None)] if video else []),  # some processors have a template of their own for it
    ):
        chat: Any = [{"role": "user", "content": content}]
        try:
            text: str = processor.apply_chat_template(
                chat, chat_template=chosen, add_generation_prompt=True
            )
        except TemplateSyntaxError as error:
            raise ValueError(
                f"{file} is broken in line {error.lineno} ({error.message}): mend it, or take it "
                "from the checkpoint that this one was made of"
            ) from error
        except Exception as error:  # a template is a program, and raises what it likes
            refused = str(error) or type(error).__name__
            continue
        places = text.count(mark)
        if places == count:
            return text
        has = f"it has {places or 'no'} place{'s' * (places > 1)} for "
        misplaced = misplaced or has + ("it" if count == 1 else f"{count} pictures")
    raise ValueError(
        f"{file} makes no question about a {what} ({misplaced or refused}): let it write "
        f"{mark} once for each part of type {kind}"
    )


def _lines(mark: str, count: int) -> str:
    return f"{mark}\n" * count


def _template(processor: Any) -> tuple[str | None, str]:
    """The processor's chat template, or its tokenizer's, and the file where it belongs."""
    found, file = processor.chat_template, "chat_template.jinja"
    if found is None:
        found, file = processor.tokenizer.chat_template, "tokenizer_config.json"
    return found.get("default") if isinstance(found, dict) else found, file
