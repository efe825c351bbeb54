"""Scenes, words and questions: the demo's world, and that nobody is favoured in it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from st3.demo.language import (
    NUMBERS,
    caption,
    long_caption,
    place,
    plural,
    split,
    vocabulary,
)
from st3.demo.scenes import (
    COLOURS,
    GRID,
    SHAPES,
    Scene,
    SceneObject,
    render,
    sample_distinct,
    sample_scene,
)
from st3.demo.tasks import TASKS, ask
from st3.demo.training.packing import pack, questions

SCENE = Scene((SceneObject(0, "red", "star"), SceneObject(4, "blue", "circle")))


def test_captions_and_places() -> None:
    assert caption(SCENE) == "at the top left a red star and in the centre a blue circle."
    three = Scene((*SCENE.objects, SceneObject(8, "orange", "cross")))
    assert caption(three) == (
        "at the top left a red star, in the centre a blue circle and at the bottom right an orange "
        "cross."
    )
    assert place(1) == "at the top centre"


def test_long_captions_are_long() -> None:
    three = Scene((*SCENE.objects, SceneObject(8, "orange", "cross")))
    assert long_caption(three) == (
        "there are three objects: at the top left a red star, in the centre a blue circle and at "
        "the bottom right an orange cross. their colours are red, blue and orange and their shapes "
        "are star, circle and cross."
    )
    assert len(split(long_caption(three))) >= 40


def _described(words: list[str], scene: Scene) -> list[SceneObject]:
    """The objects that a prompt's colour and shape words fit, read without the library's help."""
    colours = [w for w in words if w in COLOURS]
    shapes = [s for s in SHAPES if s in words or plural(s) in words]
    return [
        o
        for o in scene.objects
        if (not colours or o.colour in colours) and (not shapes or o.shape in shapes)
    ]


@pytest.mark.parametrize("seed", range(60))
def test_answers_follow_from_the_scene(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng)
    for task in TASKS:
        question = ask(task, scene, rng)
        if question is None:
            continue
        words = split(question.prompt)
        found = _described(words, scene)
        if task.startswith("count"):
            assert NUMBERS.index(question.answer) == len(found)
        elif task == "exists":
            assert question.answer == ("yes" if found else "no")
        elif task == "colour_of_shape":
            assert [question.answer] == [o.colour for o in found]
        elif task == "shape_of_colour":
            assert [question.answer] == [o.shape for o in found]
        elif task.endswith("at_place"):
            text = question.prompt.replace("center", "centre")
            (match,) = [o for o in scene.objects if place(o.cell) in text]
            assert question.answer in {match.colour, match.shape}
        elif task == "where":
            assert [question.answer] == [place(o.cell) for o in found]
        elif task == "relation":
            _check_relation(words, scene, question.answer)


def _check_relation(words: list[str], scene: Scene, answer: str) -> None:
    at = {(o.colour, o.shape): divmod(o.cell, 3) for o in scene.objects}
    pairs = [pair for pair in itertools.pairwise(words) if pair in at]
    (row, column), (other_row, other_column) = (at[pair] for pair in pairs)
    truth = {
        "left": column < other_column,
        "right": column > other_column,
        "above": row < other_row,
        "below": row > other_row,
    }
    (relation,) = [word for word in words if word in truth]
    assert answer.endswith(": yes" if truth[relation] else ": no")
    places = [place(3 * r + c) for r, c in ((row, column), (other_row, other_column))]
    (a, b), (c, d) = pairs
    assert answer.startswith(f"the {a} {b} is {places[0]} and the {c} {d} is {places[1]}: ")


@pytest.mark.parametrize("task", ["exists", "relation"])
def test_yes_and_no_are_balanced(task: str) -> None:
    rng = np.random.default_rng(0)
    asked = [ask(task, sample_scene(rng), rng) for _ in range(800)]
    answers = [question.answer.split()[-1] for question in asked if question is not None]
    assert 0.45 < answers.count("yes") / len(answers) < 0.55


def test_counts_vary() -> None:
    rng = np.random.default_rng(0)
    for task in ("count_colour", "count_shape"):
        answers = [ask(task, sample_scene(rng), rng).answer for _ in range(500)]
        assert 0.15 < answers.count("zero") / 500 < 0.35
        assert sum(answers.count(x) for x in ("two", "three", "four")) / 500 > 0.15


def test_words_point_at_what_they_mean() -> None:
    """Where training asks a head to look, against the words read by hand."""
    rng = np.random.default_rng(3)
    checked = 0
    for _ in range(60):
        scene = sample_scene(rng)
        asked = questions(scene, rng)
        packed = pack([asked], rng)
        ids = {number: word for word, number in vocabulary().items()}
        words = [ids[int(token)] for token in packed.tokens[0]]
        for (_, at), bits in zip(packed.pointed.tolist(), packed.objects.tolist(), strict=True):
            meant = [o for i, o in enumerate(scene.objects) if bits >> i & 1]
            question = asked[int(packed.branch[0, at])]
            if not meant:  # between the two lists of a long caption
                assert question.task == "detail"
                continue
            start = packed.branch[0].tolist().index(int(packed.branch[0, at]))
            prompt = len(split(question.prompt))
            if at - start < prompt and question.task in {"exists", "where", "count_shape"}:
                assert meant == _described(words[start : start + prompt], scene)
                checked += 1
    assert checked > 100


@pytest.mark.parametrize(
    ("task", "parts"),
    [
        ("describe", [("at the top left a red star and", 0), ("in the centre a blue circle .", 1)]),
        (
            "detail",
            [
                ("there are two objects : at the top left a red star and", 0),
                ("in the centre a blue circle . their colours are", 1),
                ("red and", 0),
                ("blue and", 1),
                ("their shapes are", None),
                ("star and", 0),
                ("circle .", 1),
            ],
        ),
        (
            "relation",
            [
                ("the red star is at the top left", 0),
                ("and the blue circle is in the centre", 1),
                (": yes </s>", None),
            ],
        ),
    ],
)
def test_answers_point_at_what_comes_next(task: str, parts: list[tuple[str, int | None]]) -> None:
    """Where a word of the answer is predicted, which object it is about: read by hand."""
    ask_for = (ask(task, SCENE, np.random.default_rng(seed)) for seed in range(50))
    question = next(q for q in ask_for if q.target in ((), (0, 1)) and not q.answer.endswith("no"))
    packed = pack([[question]], np.random.default_rng(0))
    words = {number: word for word, number in vocabulary().items()}
    bits = dict(zip(packed.pointed[:, 1].tolist(), packed.objects.tolist(), strict=True))
    found = [
        (words[int(label)], bits.get(int(at), 0))
        for (_, at), label in zip(packed.rows, packed.labels, strict=True)
    ]
    want = [
        (word, 0 if thing is None else 1 << thing) for text, thing in parts for word in text.split()
    ]
    if task != "relation":
        want.append(("</s>", 0))
    assert [word for word, _ in found] == [word for word, _ in want]
    # Between the two lists of a long caption the answer points past the last object: at nothing.
    assert [thing & 0b11 for _, thing in found] == [thing for _, thing in want]


def test_training_and_evaluation_share_no_scene() -> None:
    rng = np.random.default_rng(0)
    trained = {sample_scene(rng, objects=(1, 2)) for _ in range(4000)}
    measured = set(sample_distinct(np.random.default_rng(0), 400))
    assert not trained & measured
    assert len(measured) == 400


def test_coverage_is_what_the_picture_shows() -> None:
    rendered = render(SCENE, np.random.default_rng(4))
    pixels = np.asarray(rendered.picture, dtype=float)
    corner = pixels[120:, 120:].mean(axis=(0, 1))
    patches = pixels.reshape(GRID, 8, GRID, 8, 3).mean(axis=(1, 3))
    distance = np.abs(patches - corner).sum(axis=2)
    full, empty = rendered.coverage > 0.95, rendered.coverage == 0
    assert distance[full].min() > distance[empty].max()
    assert set(np.unique(rendered.owner[full])) == {0, 1}
    assert (rendered.owner[empty] == -1).all()


def test_every_colour_has_tones() -> None:
    assert all(len(tones) >= 2 for tones in COLOURS.values())
