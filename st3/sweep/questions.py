"""What a sweep asks: the demo's own labelled scenes, a folder of pictures, or a JSONL file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from st3.files import plainly
from st3.inference.pictures import PictureError, open_picture

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


@dataclass(frozen=True)
class Question:
    """A picture, a prompt, and the right answer if it is known."""

    picture: Any
    prompt: str
    answer: str | None
    label: str


def demo_questions(scenes: int, seed: int) -> list[Question]:
    """One question about each of so many held-out scenes of the demo's, answers known."""
    from st3.demo.held_out import one_each

    return [
        Question(
            asked.picture,
            asked.question.prompt,
            asked.question.answer,
            f"scene {asked.number}, {asked.question.task}",
        )
        for asked in one_each(scenes, seed)
    ]


def folder_questions(folder: Path, prompt: str) -> tuple[list[Question], list[str]]:
    """The same prompt about every picture of a folder; and those that cannot be read, with why.

    Raises:
        ValueError: no picture in it that can be read.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    found, skipped = [], []
    for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES):
        picture = _read(path)
        if isinstance(picture, str):
            skipped.append(f"{path.name}: {picture}")
        else:
            found.append(Question(picture, prompt, None, path.name))
    if not found:
        many = f"none of its {len(skipped)} pictures can be read" if skipped else "no picture in it"
        raise ValueError(f"{folder}: {many} (wanted: {', '.join(sorted(_SUFFIXES))})")
    return found, skipped


def file_questions(path: Path) -> tuple[list[Question], list[str]]:
    """Lines {"image", "prompt", "answer"?}; image paths are relative to the file.

    Returns:
        The questions, and the lines whose picture cannot be read, with why.

    Raises:
        ValueError: not readable, a line that is no such object (with its number), or no picture
            that can be read.
    """
    with plainly("read", path):
        text = path.read_bytes()
    found, skipped = [], []
    for number, line in _objects(path, text):
        picture = _read(path.parent / line["image"])
        if isinstance(picture, str):
            skipped.append(f"line {number}: {picture}")
        else:
            found.append(Question(picture, line["prompt"], line.get("answer"), f"line {number}"))
    if not found:
        raise ValueError(f"{path}: no line with a picture that can be read")
    return found, skipped


def _read(path: Path) -> Any:
    """A picture, or a text that says why there is none."""
    try:
        return open_picture(path)
    except PictureError as error:
        return str(error)


def _objects(path: Path, text: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: no JSON ({error})") from None
        found = found if isinstance(found, dict) else {}
        texts = {"image": found.get("image"), "prompt": found.get("prompt")}
        texts["answer"] = found.get("answer") or ""
        wrong = next((key for key, value in texts.items() if not isinstance(value, str)), None)
        if wrong is not None:
            raise ValueError(f'{path}, line {number}: "{wrong}" must be a text')
        yield number, found


def all_labelled(questions: Sequence[Question]) -> bool:
    """Whether accuracy can be measured."""
    return all(question.answer is not None for question in questions)
