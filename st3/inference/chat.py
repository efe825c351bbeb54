"""A question about a picture as a model was taught to be asked: in its chat format."""

from __future__ import annotations

import warnings
from typing import Any

from jinja2 import TemplateSyntaxError
from transformers import ProcessorMixin


def in_chat_format(processor: ProcessorMixin, prompt: str) -> str:
    """The prompt in the chat format, with one placeholder for the picture.

    Templates of multimodal models take a message as a list of parts, those of text models as a
    string; the first form that gives the picture one place is taken. Where there is no template,
    it is LLaVA-1.5's format, with a warning.

    Raises:
        ValueError: an empty prompt, one that holds the picture's placeholder, or a chat template
            that is broken or has no place for a picture.
    """
    if not prompt.strip():
        raise ValueError("the prompt is empty: ask something, e.g. 'What do you see?'")
    picture = getattr(processor, "image_token", "<image>")
    if picture in prompt:
        raise ValueError(f"leave {picture} out of the prompt: the picture is put in by itself")
    template, file = template_of(processor)
    if template is None:
        warnings.warn(
            "this checkpoint has no chat template, so the question is put as LLaVA-1.5 was taught "
            "to take it; copy chat_template.jinja from the checkpoint that it was made of",
            stacklevel=2,
        )
        return f"USER: {picture}\n{prompt} ASSISTANT:"
    parts = [{"type": "image"}, {"type": "text", "text": prompt}]
    refused, misplaced = "", ""
    for content in (parts, f"{picture}\n{prompt}"):
        chat: Any = [{"role": "user", "content": content}]
        try:
            text: str = processor.apply_chat_template(
                chat, chat_template=template, add_generation_prompt=True
            )
        except TemplateSyntaxError as error:
            raise ValueError(
                f"{file} is broken in line {error.lineno} ({error.message}): mend it, or take it "
                "from the checkpoint that this one was made of"
            ) from error
        except Exception as error:  # a template is a program, and raises what it likes
            refused = str(error) or type(error).__name__
            continue
        places = text.count(picture)
        if places == 1:
            return text
        misplaced = misplaced or f"it has {places or 'no'} place{'s' * (places > 1)} for it"
    raise ValueError(
        f"{file} makes no question about a picture ({misplaced or refused}): let it write "
        f"{picture} once for each part of type image"
    )


def template_of(processor: Any) -> tuple[str | None, str]:
    """The processor's chat template, or its tokenizer's, and the file where it belongs."""
    found, file = processor.chat_template, "chat_template.jinja"
    if found is None:
        found, file = processor.tokenizer.chat_template, "tokenizer_config.json"
    return found.get("default") if isinstance(found, dict) else found, file
