"""What can be asked about a scene, and the one right answer: the demo's tasks.

Every task turns a scene into questions. A question also tells what its words speak of ("the red
star" in it means these objects), which training uses to teach where to look.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from st3.demo.language import (
    FORMS,
    NUMBERS,
    caption,
    dress,
    long_caption,
    noun,
    place,
    plural,
)
from st3.demo.scenes import CELLS, COLOURS, SHAPES, Scene, SceneObject


@dataclass(frozen=True)
class Question:
    """One question about a scene.

    Attributes:
        task: its name in `TASKS`.
        prompt, answer: what is asked and what is right.
        target: the objects (their number in the scene) that tell the answer; for captions
            nothing, they name one after the other.
        mentions: phrases of the prompt and the objects that they speak of.
    """

    task: str
    prompt: str
    answer: str
    target: tuple[int, ...] = ()
    mentions: tuple[tuple[str, tuple[int, ...]], ...] = ()


_VALUES = {"colour": list(COLOURS), "shape": list(SHAPES)}

Asker = Callable[[Scene, np.random.Generator], Iterator[Question]]


def _form(key: str, rng: np.random.Generator) -> str:
    return str(rng.choice(FORMS[key]))


def _which(scene: Scene, **wanted: str) -> tuple[int, ...]:
    """The objects with this colour, shape or both."""
    return tuple(
        i
        for i, thing in enumerate(scene.objects)
        if all(getattr(thing, name) == value for name, value in wanted.items())
    )


def _shuffled(scene: Scene, rng: np.random.Generator) -> list[tuple[int, SceneObject]]:
    return [(i, scene.objects[i]) for i in rng.permutation(len(scene.objects)).tolist()]


def _absent(scene: Scene, name: str) -> list[str]:
    here = {getattr(thing, name) for thing in scene.objects}
    return [value for value in _VALUES[name] if value not in here]


def _describe(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    yield Question("describe", _form("describe", rng), caption(scene))


def _detail(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    yield Question("detail", _form("detail", rng), long_caption(scene))


def _count(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    everything = tuple(range(len(scene.objects)))
    yield Question("count", _form("count", rng), NUMBERS[len(everything)], everything)


def _count_of(name: str) -> Asker:
    """ "How many red objects ...", "How many stars ...": one in four about something absent."""

    def asker(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
        here = sorted({getattr(thing, name) for thing in scene.objects})
        absent = _absent(scene, name)
        while True:
            value = str(rng.choice(absent if absent and rng.random() < 0.25 else here))
            things = f"{value} objects" if name == "colour" else plural(value)
            found = _which(scene, **{name: value})
            prompt = _form("count_of", rng).format(things=things)
            yield Question(f"count_{name}", prompt, NUMBERS[len(found)], found, ((things, found),))

    return asker


def _at_place(name: str) -> Asker:
    def asker(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
        for index, thing in _shuffled(scene, rng):
            where = place(thing.cell)
            prompt = _form("at_place", rng).format(name=name, place=where)
            answer = getattr(thing, name)
            yield Question(f"{name}_at_place", prompt, answer, (index,), ((where, (index,)),))

    return asker


def _look_up(name: str, by: str) -> Asker:
    """The colour of the only star, the shape of the only red object."""

    def asker(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
        for index, thing in _shuffled(scene, rng):
            value = getattr(thing, by)
            if _which(scene, **{by: value}) != (index,):
                continue
            prompt = _form(f"{name}_of_{by}", rng).format(**{by: value})
            mentions = ((value, (index,)),)
            yield Question(f"{name}_of_{by}", prompt, getattr(thing, name), (index,), mentions)

    return asker


def _exists(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    """Half "yes", half "no"; half for "a red star", a quarter each for "a star", "a red object".

    A third of the "no" to "a red star" share the colour with an object, a third the shape.
    """
    while True:
        thing = scene.objects[int(rng.integers(len(scene.objects)))]
        yes, kind = rng.random() < 0.5, rng.random()
        wanted = {"colour": thing.colour, "shape": thing.shape}
        if kind < 0.5:
            name = "colour" if kind < 0.25 else "shape"
            values = [wanted[name]] if yes else _absent(scene, name) or [wanted[name]]
            wanted = {name: str(rng.choice(values))}
        elif not yes:
            original, change = dict(wanted), rng.random()
            while _which(scene, **wanted):
                if change < 0.67:
                    wanted["colour"] = str(rng.choice(_VALUES["colour"]))
                if change > 0.33:
                    wanted["shape"] = str(rng.choice(_VALUES["shape"]))
                if rng.random() < 0.05:  # every neighbour may be taken
                    wanted, change = dict(original), rng.random()
        found = _which(scene, **wanted)
        phrase = f"{wanted.get('colour', '')} {wanted.get('shape', 'object')}".strip()
        prompt = _form("exists", rng).format(thing=noun(phrase))
        yield Question("exists", prompt, "yes" if found else "no", found, ((phrase, found),))


def _where(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    for index, thing in _shuffled(scene, rng):
        phrase = f"{thing.colour} {thing.shape}"
        if _which(scene, colour=thing.colour, shape=thing.shape) == (index,):
            prompt = _form("where", rng).format(thing=phrase)
            yield Question("where", prompt, place(thing.cell), (index,), ((phrase, (index,)),))


def _relation(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    """ "Is the red star left of the blue circle?", half of them yes, with the reason in front.

    "The red star is at the top left and the blue circle is in the centre: yes."
    """
    unique = [
        (i, thing)
        for i, thing in _shuffled(scene, rng)
        if _which(scene, colour=thing.colour, shape=thing.shape) == (i,)
    ]
    for n, (i, first) in enumerate(unique):
        for j, second in unique[n + 1 :]:
            (row, column), (other_row, other_column) = (
                divmod(thing.cell, CELLS) for thing in (first, second)
            )
            true, false = [], []
            if column != other_column:
                pair = ("left of", "right of")
                left = column < other_column
                true.append(pair[not left])
                false.append(pair[left])
            if row != other_row:
                pair = ("above", "below")
                true.append(pair[row > other_row])
                false.append(pair[row < other_row])
            yes = bool(rng.random() < 0.5)
            relation = str(rng.choice(true if yes else false))
            if relation.endswith("of") and rng.random() < 0.5:
                relation = f"to the {relation}"
            a, b = (f"{thing.colour} {thing.shape}" for thing in (first, second))
            prompt = _form("relation", rng).format(a=a, relation=relation, b=b)
            mentions = ((a, (i,)), (b, (j,)))
            answer = f"the {a} is {place(first.cell)} and the {b} is {place(second.cell)}: "
            answer += "yes" if yes else "no"
            yield Question("relation", prompt, answer, (i, j), mentions)


TASKS: dict[str, Asker] = {
    "describe": _describe,
    "detail": _detail,
    "count": _count,
    "count_colour": _count_of("colour"),
    "count_shape": _count_of("shape"),
    "colour_at_place": _at_place("colour"),
    "shape_at_place": _at_place("shape"),
    "colour_of_shape": _look_up("colour", "shape"),
    "shape_of_colour": _look_up("shape", "colour"),
    "exists": _exists,
    "where": _where,
    "relation": _relation,
}


def ask(task: str, scene: Scene, rng: np.random.Generator) -> Question | None:
    """One question of `task` about `scene`, dressed as people type; None where it has none."""
    question = next(TASKS[task](scene, rng), None)
    return question and replace(question, prompt=dress(question.prompt, rng))
