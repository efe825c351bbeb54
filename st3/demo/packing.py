"""Questions about a picture, packed into one row behind its visual tokens.

A question attends to the picture and to itself alone, so that many questions share one forward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from st3.demo.language import Question, ask, dress, nonsense, split, vocabulary
from st3.demo.scenes import Scene

PREFIX = ("<s>", "user", ":")
QUESTIONS = {
    "describe": 1,
    "count": 1,
    "colour_at_place": 1,
    "shape_at_place": 1,
    "colour_of_shape": 2,
    "shape_of_colour": 2,
    "exists": 4,
    "where": 2,
}
# For the last stage: what is learned last gets more room.
MORE_LOOKUPS = QUESTIONS | {"colour_of_shape": 1, "shape_of_colour": 4}
LOOKUPS = ("colour_of_shape", "shape_of_colour", "exists", "where")


@dataclass
class Packed:
    """The text of a batch: B rows of up to T tokens, all behind the visual tokens.

    tokens, branch, offset: int64 [B, T]; branch -1 is padding; offset counts inside the branch.
    rows, labels: where an answer token is predicted [A, 2] (row, place) and which [A].
    lookup: bool [A], the tokens that answer a look-up by content, for the log.
    last: last prompt tokens [Q, 2].
    pointed, objects: places that concern one object [M, 2] and which object [M].
    ranking: the last prompt token of the question that ranks, one for each row [B].
    """

    tokens: torch.Tensor
    branch: torch.Tensor
    offset: torch.Tensor
    rows: torch.Tensor
    labels: torch.Tensor
    lookup: torch.Tensor
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
    """The questions that train on one scene, captions first; sometimes a nonsense prompt.

    `mixture` says how many of each task, which should name "describe" first.
    """
    asked = []
    for task, count in mixture.items():
        asked += [q for _ in range(count) if (q := ask(task, scene, rng)) is not None]
    if rng.random() < 0.15:
        caption = asked[0].answer
        asked[0] = Question("describe", dress(nonsense(rng), rng), caption, None)
    return asked


def _objects_named(question: Question) -> list[int | None]:
    """For each answer token, the object it speaks of: the target, or the caption's next one."""
    words = split(question.answer)
    if question.task != "describe":
        return [question.target] * len(words)
    named: list[int | None] = []
    current = 0
    for word in words:
        named.append(current)
        if word in {",", "and"}:
            current += 1
    return named


def pack(asked: Sequence[Sequence[Question]], rng: np.random.Generator) -> Packed:
    """Tokenise and pack the questions of each picture."""
    ids = vocabulary()
    unknown = ids["<unk>"]
    tokens: list[list[int]] = []
    branches: list[list[int]] = []
    offsets: list[list[int]] = []
    rows, labels, lookup, last, pointed, objects, ranking = [], [], [], [], [], [], []
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
            named = [*_objects_named(question), None]
            for i, (word, thing) in enumerate(zip(answer, named, strict=True)):
                rows.append((row, end + i))
                labels.append(ids[word])
                lookup.append(question.task in LOOKUPS and word != "</s>")
                if thing is not None:
                    pointed.append((row, end + i))
                    objects.append(thing)
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
        lookup=torch.tensor(lookup),
        last=torch.tensor(last),
        pointed=torch.tensor(pointed),
        objects=torch.tensor(objects),
        ranking=torch.tensor(ranking),
    )
