"""A conversation in a model's chat format: its first turn, and what each later one adds.

A later turn must continue what the KV cache holds, token for token. So nothing that was said is put
into words again: the template is asked about a conversation with a mark in place of the answer, and
what it writes behind the mark is fed.
"""

from __future__ import annotations

from typing import Any

from jinja2 import TemplateSyntaxError

from st3.inference.chat import template_of

_MARK = "\N{LEFT CEILING}answer\N{RIGHT CEILING}"
_PLAIN = "USER: {}\n{} ASSISTANT:"  # LLaVA-1.5's, where a checkpoint has no template


def first_words(processor: Any, text: str, pictures: int) -> str:
    """The first turn, with a placeholder for each of its pictures.

    Raises:
        ValueError: see `later_words`.
    """
    return _written(processor, [(text, pictures)])


def later_words(processor: Any, before: tuple[str, int], text: str, pictures: int) -> str:
    """What follows the last answer: its end, and the next turn.

    Args:
        processor: of the model.
        before: text of the turn before, and its number of pictures.
        text, pictures: of the next one.

    Raises:
        ValueError: an empty text, one with the placeholder in it, or a chat template that is
            broken or has no place for a picture.
    """
    return _written(processor, [before, (text, pictures)])


def _written(processor: Any, turns: list[tuple[str, int]]) -> str:
    text, pictures = turns[-1]
    mark = getattr(processor, "image_token", "<image>")
    if not text.strip():
        raise ValueError("the prompt is empty: ask something, e.g. 'What do you see?'")
    if mark in text:
        raise ValueError(f"leave {mark} out of the prompt: pictures are put in by themselves")
    template, file = template_of(processor)
    if template is None:
        later = " " if len(turns) > 1 else ""
        return later + _PLAIN.format(mark * pictures, text).replace(": \n", ": ")
    why = ""
    for parts in (True, False):
        try:
            written: str = processor.apply_chat_template(
                _chat(turns, mark, parts), chat_template=template, add_generation_prompt=True
            )
        except TemplateSyntaxError as error:
            raise ValueError(
                f"{file} is broken in line {error.lineno} ({error.message})"
            ) from error
        except Exception as error:  # a template is a program, and raises what it likes
            why = why or str(error) or type(error).__name__
            continue
        if len(turns) > 1:
            _, found, written = written.rpartition(_MARK)
            if not found:
                why = why or "it leaves out what was answered"
                continue
        if written.count(mark) == pictures:
            return written
        why = why or f"{pictures} pictures, and {written.count(mark)} places for them"
    raise ValueError(f"{file} makes no turn of a conversation ({why})")


def _chat(turns: list[tuple[str, int]], mark: str, parts: bool) -> list[dict[str, Any]]:
    """Messages as templates of multimodal models want them, or as those of text models do."""
    chat: list[dict[str, Any]] = []
    for text, pictures in turns:
        if chat:
            said = [{"type": "text", "text": _MARK}]
            chat.append({"role": "assistant", "content": said if parts else _MARK})
        words = [{"type": "text", "text": text}]
        plain = "\n".join([mark] * pictures + [text])
        images = [{"type": "image"}] * pictures
        chat.append({"role": "user", "content": [*images, *words] if parts else plain})
    return chat
