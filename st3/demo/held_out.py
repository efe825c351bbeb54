"""The questions that nobody trained on: every task, once, about each held-out scene."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from st3.demo.scenes import render, sample_distinct
from st3.demo.tasks import TASKS, Question, ask


@dataclass(frozen=True)
class Asked:
    """A question about the picture of scene `number`."""

    number: int
    picture: Image.Image
    question: Question


def held_out(scenes: int, seed: int, tasks: Sequence[str] = tuple(TASKS)) -> Iterator[Asked]:
    """Scenes from the tenth of the scene space that training never draws, no two alike.

    A task that fits a scene not at all (where something is, in an empty one) is left out there.
    """
    rng = np.random.default_rng(seed)
    for number, scene in enumerate(sample_distinct(rng, scenes)):
        picture = render(scene, rng).picture
        for task in tasks:
            question = ask(task, scene, rng)
            if question is not None:
                yield Asked(number, picture, question)
