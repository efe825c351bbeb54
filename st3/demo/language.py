"""The demo's small language: what can be asked about a scene, and the one right answer.

Every task turns a scene into questions with answers; `TASKS` names those that the packaged model
offers. Captions name the objects in reading order, place first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from st3.demo.scenes import CELLS, COLOURS, SHAPES, Scene, SceneObject

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PLACES = (
    ("top left", "top centre", "top right"),
    ("centre left", "centre", "centre right"),
    ("bottom left", "bottom centre", "bottom right"),
)
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")


@dataclass(frozen=True)
class Question:
    """One question about a scene. `target` is the object to look at, None for all of them."""

    task: str
    prompt: str
    answer: str
    target: int | None


def place(cell: int) -> str:
    """ "at the top left", "in the centre", ..."""
    row, column = divmod(cell, CELLS)
    where = PLACES[row][column]
    return f"in the {where}" if where == "centre" else f"at the {where}"


def _noun(thing: SceneObject) -> str:
    article = "an" if thing.colour[0] in "aeiou" else "a"
    return f"{article} {thing.colour} {thing.shape}"


def caption(scene: Scene) -> str:
    """ "at the top left a red star, in the centre a blue circle and at the ... a green cross."."""
    parts = [f"{place(o.cell)} {_noun(o)}" for o in scene.objects]
    *head, last = parts
    return (", ".join(head) + " and " if head else "") + last + "."


# How each task may be put; {name} is "colour" or "shape".
FORMS: dict[str, tuple[str, ...]] = {
    "describe": (
        "describe",
        "describe the picture",
        "describe this picture",
        "describe the image",
        "describe what you see",
        "describe the scene in detail",
        "what do you see",
        "what can you see",
        "what do you see in the picture",
        "what is in the picture",
        "what is in this image",
        "what is this",
        "what is shown",
        "what does the picture show",
        "what is here",
        "what objects are there",
        "which objects are in the picture",
        "tell me what you see",
        "tell me about this picture",
        "list the objects",
        "caption",
        "write a caption",
        "give a short caption for the image",
        "explain the picture",
        "can you describe the picture",
    ),
    "count": (
        "how many objects are there",
        "how many objects are in the picture",
        "how many shapes are there",
        "how many shapes do you see",
        "how many things are there in the image",
        "count the objects",
        "what is the number of objects",
    ),
    "at_place": (
        "what {name} is the object {place}",
        "which {name} is the object {place}",
        "what is the {name} of the object {place}",
        "what {name} is the shape {place}",
        "what {name} is the thing {place}",
    ),
    "colour_of_shape": (
        "what colour is the {shape}",
        "which colour is the {shape}",
        "what is the colour of the {shape}",
    ),
    "shape_of_colour": (
        "what shape is the {colour} object",
        "what shape is the {colour} thing",
        "what is the {colour} object",
        "which shape is {colour}",
    ),
    "exists": (
        "is there {thing}",
        "is there {thing} in the picture",
        "do you see {thing}",
        "can you see {thing}",
    ),
    "where": (
        "where is the {colour} {shape}",
        "where do you see the {colour} {shape}",
    ),
}


def _form(key: str, rng: np.random.Generator) -> str:
    return str(rng.choice(FORMS[key]))


def _describe(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    yield Question("describe", _form("describe", rng), caption(scene), None)


def _count(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    yield Question("count", _form("count", rng), NUMBERS[len(scene.objects)], None)


def _at(scene: Scene, rng: np.random.Generator, name: str) -> Iterator[Question]:
    for index in rng.permutation(len(scene.objects)).tolist():
        thing = scene.objects[index]
        prompt = _form("at_place", rng).format(name=name, place=place(thing.cell))
        yield Question(f"{name}_at_place", prompt, getattr(thing, name), index)


def _colour_at_place(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    return _at(scene, rng, "colour")


def _shape_at_place(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    return _at(scene, rng, "shape")


def _unique(scene: Scene, name: str) -> list[int]:
    values = [getattr(o, name) for o in scene.objects]
    return [i for i, value in enumerate(values) if values.count(value) == 1]


def _colour_of_shape(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    for index in rng.permutation(_unique(scene, "shape")).tolist():
        thing = scene.objects[index]
        prompt = _form("colour_of_shape", rng).format(shape=thing.shape)
        yield Question("colour_of_shape", prompt, thing.colour, index)


def _shape_of_colour(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    for index in rng.permutation(_unique(scene, "colour")).tolist():
        thing = scene.objects[index]
        prompt = _form("shape_of_colour", rng).format(colour=thing.colour)
        yield Question("shape_of_colour", prompt, thing.shape, index)


def _exists(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    """Half "yes", half "no"; a third of the "no" share a colour with an object, a third a shape."""
    present = {(o.colour, o.shape) for o in scene.objects}
    while True:
        index = int(rng.integers(len(scene.objects)))
        thing = scene.objects[index]
        prompt = _form("exists", rng)
        if rng.random() < 0.5:
            yield Question("exists", prompt.format(thing=_noun(thing)), "yes", index)
            continue
        colour, shape = thing.colour, thing.shape
        while (colour, shape) in present:
            change = rng.random()
            colour = thing.colour if change < 0.33 else str(rng.choice(list(COLOURS)))
            shape = thing.shape if change > 0.67 else str(rng.choice(SHAPES))
        absent = _noun(SceneObject(thing.cell, colour, shape))
        yield Question("exists", prompt.format(thing=absent), "no", None)


def _where(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    pairs = [(o.colour, o.shape) for o in scene.objects]
    for index in rng.permutation(len(scene.objects)).tolist():
        thing = scene.objects[index]
        if pairs.count((thing.colour, thing.shape)) == 1:
            prompt = _form("where", rng).format(colour=thing.colour, shape=thing.shape)
            yield Question("where", prompt, place(thing.cell), index)


Asker = Callable[[Scene, np.random.Generator], Iterator[Question]]

ALL_TASKS: dict[str, Asker] = {
    "describe": _describe,
    "count": _count,
    "colour_at_place": _colour_at_place,
    "shape_at_place": _shape_at_place,
    "colour_of_shape": _colour_of_shape,
    "shape_of_colour": _shape_of_colour,
    "exists": _exists,
    "where": _where,
}


# What the packaged model reached the gate in (docs/demo-model.md); the others are trained as well.
TASKS = (
    "describe",
    "count",
    "colour_at_place",
    "shape_at_place",
    "colour_of_shape",
    "where",
)


def ask(task: str, scene: Scene, rng: np.random.Generator) -> Question | None:
    """One question of `task` about `scene`, dressed as people type; None where it has none."""
    question = next(ALL_TASKS[task](scene, rng), None)
    if question is None:
        return None
    return Question(task, dress(question.prompt, rng), question.answer, question.target)


def dress(prompt: str, rng: np.random.Generator) -> str:
    """Vary what people vary: a capital, "please", American spelling, the mark at the end."""
    if rng.random() < 0.1:
        prompt = f"please {prompt}"
    if rng.random() < 0.25:
        prompt = prompt.replace("colour", "color").replace("centre", "center")
    if rng.random() < 0.5:
        prompt = prompt[0].upper() + prompt[1:]
    asks = re.match(r"(please )?(what|which|how|is|do|can|where)\b", prompt, re.IGNORECASE)
    usual = "?" if asks else "."
    ending = rng.random()
    return prompt + (usual if ending < 0.65 else "" if ending < 0.93 else " " + usual)


def nonsense(rng: np.random.Generator) -> str:
    """A prompt that the language does not know; the caption is the best try at an answer."""
    words = [w for w in vocabulary() if w not in SPECIAL]
    count = int(rng.integers(1, 8))
    picked = [str(rng.choice(words)) if rng.random() < 0.3 else "<unk>" for _ in range(count)]
    return " ".join(picked) + str(rng.choice(("", "?", ".")))


def split(text: str) -> list[str]:
    """Words and marks in lower case, as the packaged tokenizer splits them."""
    return re.findall(r"</?\w+>|\w+|[^\w\s]", text.lower())


def vocabulary() -> dict[str, int]:
    """Token -> id: the special tokens, then every word of the language in alphabetic order."""
    forms = [re.sub(r"{\w+}", "", form) for forms in FORMS.values() for form in forms]
    places = [place(cell) for cell in range(CELLS * CELLS)]
    rest = ["user: assistant: please color colour shape center a an and yes no , . ? !"]
    texts = [*forms, *places, *COLOURS, *SHAPES, *NUMBERS, *rest]
    words = sorted({word for text in texts for word in split(text)})
    return {token: i for i, token in enumerate([*SPECIAL, *words])}
