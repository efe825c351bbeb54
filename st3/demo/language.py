"""The demo's small language: its words, its captions, and the forms that questions take.

Captions name the objects in reading order, place first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from st3.demo.scenes import CELLS, COLOURS, SHAPES, Scene

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PLACES = (
    ("top left", "top centre", "top right"),
    ("centre left", "centre", "centre right"),
    ("bottom left", "bottom centre", "bottom right"),
)
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")


def place(cell: int) -> str:
    """ "at the top left", "in the centre", ..."""
    row, column = divmod(cell, CELLS)
    where = PLACES[row][column]
    return f"in the {where}" if where == "centre" else f"at the {where}"


def noun(phrase: str) -> str:
    """With its article: "a red star", "an object"."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def plural(shape: str) -> str:
    """ "stars", "crosses"."""
    return shape + ("es" if shape.endswith("s") else "s")


def _listed(parts: Sequence[str]) -> str:
    """ "a, b and c"."""
    *head, last = parts
    return (", ".join(head) + " and " if head else "") + last


def caption(scene: Scene) -> str:
    """ "at the top left a red star, in the centre a blue circle and at the ... a green cross."."""
    things = scene.objects
    return _listed([f"{place(o.cell)} {noun(f'{o.colour} {o.shape}')}" for o in things]) + "."


def long_caption(scene: Scene) -> str:
    """Two sentences: how many and the caption; then all colours and all shapes, in that order.

    35 tokens with two objects, 47 with three, 59 with four.
    """
    things = scene.objects
    first = f"there {'is' if len(things) == 1 else 'are'} {NUMBERS[len(things)]}"
    first += f" object{'s' * (len(things) > 1)}: {caption(scene)}"
    colours, shapes = (_listed([getattr(o, name) for o in things]) for name in ("colour", "shape"))
    if len(things) == 1:
        return f"{first} its colour is {colours} and its shape is {shapes}."
    return f"{first} their colours are {colours} and their shapes are {shapes}."


# How each task may be put; {name} is "colour" or "shape".
FORMS: dict[str, tuple[str, ...]] = {
    "describe": (
        "describe",
        "describe the picture",
        "describe this picture",
        "describe the image",
        "describe what you see",
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
    "detail": (
        "describe the picture in detail",
        "describe this picture in detail",
        "describe the image in great detail",
        "describe the scene in detail",
        "describe everything in detail",
        "give a detailed description of the picture",
        "give a long caption for the image",
        "write two sentences about the picture",
        "tell me all about this picture",
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
    "count_of": (
        "how many {things} are there",
        "how many {things} are in the picture",
        "how many {things} do you see",
        "how many {things} can you see",
        "count the {things}",
        "what is the number of {things}",
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
        "where is the {thing}",
        "where do you see the {thing}",
    ),
    "relation": ("is the {a} {relation} the {b}",),
}


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
    rest = [
        "user: assistant: please color colour colors colours shape shapes center",
        "a an and yes no , . ? ! is are its their left right of above below object objects",
    ]
    texts = [*forms, *places, *COLOURS, *SHAPES, *map(plural, SHAPES), *NUMBERS, *rest]
    words = sorted({word for text in texts for word in split(text)})
    return {token: i for i, token in enumerate([*SPECIAL, *words])}
