"""The questions that nobody trained on, about held-out scenes: every task about each, or one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from st3.demo.scenes import Scene, render, sample_distinct
from st3.demo.tasks import TASKS, Question, ask


@dataclass(frozen=True)
class Asked:
    """A question about the picture of scene `number`."""

    number: int
    picture: Image.Image
    question: Question


def held_out(scenes: int, seed: int, tasks: Sequence[str] = tuple(TASKS)) -> Iterator[Asked]:
    """Every task, once, about each scene.

    A task that fits a scene not at all (where something is, in an empty one) is left out there.
    """
    for number, scene, picture, rng in _drawn(scenes, seed):
        for task in tasks:
            question = ask(task, scene, rng)
            if question is not None:
                yield Asked(number, picture, question)


def one_each(scenes: int, seed: int) -> Iterator[Asked]:
    """One question about each scene, of all tasks in turn; where one fits not at all, of the next.

    A method that loses an object is wrong in all questions about it: intervals and tests that take
    questions as independent want a picture for each.
    """
    tasks = tuple(TASKS)
    for number, scene, picture, rng in _drawn(scenes, seed):
        first = number % len(tasks)
        turn = (ask(task, scene, rng) for task in tasks[first:] + tasks[:first])
        yield Asked(number, picture, next(question for question in turn if question is not None))


def _drawn(scenes: int, seed: int) -> Iterator[tuple[int, Scene, Image.Image, np.random.Generator]]:
    """Scenes from the tenth of the scene space that training never draws, no two alike."""
    rng = np.random.default_rng(seed)
    for number, scene in enumerate(sample_distinct(rng, scenes)):
        yield number, scene, render(scene, rng).picture, rng
