"""Questions about a picture, packed into one row behind its visual tokens.

A question attends to the picture and to itself alone, so that many questions share one forward.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from st3.demo.language import dress, nonsense, split, vocabulary
from st3.demo.scenes import Scene
from st3.demo.tasks import Question, ask

PREFIX = ("<s>", "user", ":")
QUESTIONS = {
    "describe": 1,
    "detail": 1,
    "count": 1,
    "count_colour": 1,
    "count_shape": 1,
    "colour_at_place": 1,
    "shape_at_place": 1,
    "colour_of_shape": 1,
    "shape_of_colour": 2,
    "exists": 3,
    "where": 1,
    "relation": 2,
}
# Counting is learned last: more of it, and less of what is known by then.
MORE_COUNTS = QUESTIONS | {
    "count": 2,
    "count_colour": 3,
    "count_shape": 3,
    "shape_of_colour": 1,
    "exists": 2,
    "relation": 1,
}
MOSTLY_COUNTS = MORE_COUNTS | {"detail": 0, "count_colour": 4, "count_shape": 4}
RELATIONS = {"relation": 2}
TASK_IDS = {task: number for number, task in enumerate(QUESTIONS)}


@dataclass
class Packed:
    """The text of a batch: B rows of up to T tokens, all behind the visual tokens.

    tokens, branch, offset: int64 [B, T]; branch -1 is padding; offset counts inside the branch.
    rows, labels: where an answer token is predicted [A, 2] (row, place) and which [A].
    weight: what it counts in the loss [A], see `_weights`.
    question: the question that it answers [A], of the batch's Q.
    task: the questions' tasks, numbers in `TASK_IDS` [Q].
    last: last prompt tokens [Q, 2].
    pointed, objects: places that concern some objects [M, 2], and which: bit i of the number is
        set for object i [M].
    ranking: the last prompt token of the question that ranks, one for each row [B].
    """

    tokens: torch.Tensor
    branch: torch.Tensor
    offset: torch.Tensor
    rows: torch.Tensor
    labels: torch.Tensor
    weight: torch.Tensor
    question: torch.Tensor
    task: torch.Tensor
    last: torch.Tensor
    pointed: torch.Tensor
    objects: torch.Tensor
    ranking: torch.Tensor

    def to(self, device: torch.device | str) -> Packed:
        """The same on `device`."""
        return Packed(
            **{field.name: getattr(self, field.name).to(device) for field in fields(self)}
        )


def questions(
    scene: Scene, rng: np.random.Generator, mixture: Mapping[str, int] = QUESTIONS
) -> list[Question]:
    """The questions that train on one scene, the caption first; sometimes a nonsense prompt.

    `mixture` says how many of each task.
    """
    asked = []
    for task, count in mixture.items():
        asked += [q for _ in range(count) if (q := ask(task, scene, rng)) is not None]
    if asked and asked[0].task == "describe" and rng.random() < 0.15:
        asked[0] = replace(asked[0], prompt=dress(nonsense(rng), rng))
    return asked


def _weights(question: Question, size: int) -> list[float]:
    """Weights of an answer of `size` tokens: 1 / sqrt(size) each.

    Alike for all tokens, captions would weigh half of everything and counts a twentieth; here it is
    a third and an eighth. The verdict that ends the reasoning about a relation weighs as a one-word
    answer does.
    """
    weights = [size**-0.5] * size
    if question.task == "relation":
        weights[-2:] = [2**-0.5] * 2
    return weights


def _bits(objects: Sequence[int]) -> int:
    return sum(1 << number for number in objects)


def _concerned(question: Question) -> list[int]:
    """For each answer token, the objects it speaks of, as bits: the target, or the list's next.

    Lists begin after a colon, "are", "is" or at the start, and go on after a comma or "and".
    """
    words = split(question.answer)
    if question.task == "relation":
        middle = words.index("and")
        first, second = ([_bits([thing])] for thing in question.target)
        return first * middle + second * (words.index(":") - middle) + [0] * 2
    if question.task not in {"describe", "detail"}:
        return [_bits(question.target)] * len(words)
    found = []
    current = 0
    for word in words:
        found.append(_bits([current]))
        if word in {",", "and"}:
            current += 1
        elif word in {":", "are", "is"}:
            current = 0
    return found


def _mentioned(question: Question, words: list[str]) -> Iterator[tuple[int, int]]:
    """Where in the prompt's `words` a phrase is complete, and the objects meant, as bits."""
    usual = [{"center": "centre"}.get(word, word) for word in words]
    for phrase, objects in question.mentions:
        parts = split(phrase)
        size = len(parts)
        ends = [i + size for i in range(len(usual) - size + 1) if usual[i : i + size] == parts]
        if objects and ends:
            yield ends[0] - 1, _bits(objects)


def pack(asked: Sequence[Sequence[Question]], rng: np.random.Generator) -> Packed:
    """Tokenise and pack the questions of each picture."""
    ids = vocabulary()
    unknown = ids["<unk>"]
    tokens: list[list[int]] = []
    branches: list[list[int]] = []
    offsets: list[list[int]] = []
    rows, labels, last, pointed, objects, ranking = [], [], [], [], [], []
    weights: list[float] = []
    of: list[int] = []
    tasks: list[int] = []
    for row, batch in enumerate(asked):
        line: list[int] = []
        branch: list[int] = []
        offset: list[int] = []
        ends = []
        for number, question in enumerate(batch):
            prompt = [*split(question.prompt), "assistant", ":"]
            answer = [*split(question.answer), "</s>"]
            start = len(line)
            end = start + len(prompt) - 1
            ends.append(end)
            last.append((row, end))
            of += [len(tasks)] * len(answer)
            tasks.append(TASK_IDS[question.task])
            weights += _weights(question, len(answer))
            for at, things in _mentioned(question, prompt):
                pointed.append((row, start + at))
                objects.append(things)
            concerned = [*_concerned(question), 0]
            for i, (word, things) in enumerate(zip(answer, concerned, strict=True)):
                rows.append((row, end + i))
                labels.append(ids[word])
                if things:
                    pointed.append((row, end + i))
                    objects.append(things)
            text = prompt + answer[:-1]
            line += [ids.get(word, unknown) for word in text]
            branch += [number] * len(text)
            offset += range(len(text))
        tokens.append(line)
        branches.append(branch)
        offsets.append(offset)
        ranking.append(ends[int(rng.integers(len(ends)))])
    width = max(map(len, tokens))

    def padded(lists: list[list[int]], value: int) -> torch.Tensor:
        return torch.tensor([x + [value] * (width - len(x)) for x in lists])

    return Packed(
        tokens=padded(tokens, ids["<pad>"]),
        branch=padded(branches, -1),
        offset=padded(offsets, 0),
        rows=torch.tensor(rows),
        labels=torch.tensor(labels),
        weight=torch.tensor(weights),
        question=torch.tensor(of),
        task=torch.tensor(tasks),
        last=torch.tensor(last),
        pointed=torch.tensor(pointed),
        objects=torch.tensor(objects),
        ranking=torch.tensor(ranking),
    )
