"""The packaged model: what it answers, what is measured of it, and what it weighs."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import slow
from drawings import SCENES, STYLES

import st3
from st3 import demo
from st3.demo.evaluate import evaluate
from st3.demo.language import (
    FORMS,
    SPECIAL,
    caption,
    nonsense,
    split,
    vocabulary,
)
from st3.demo.packaging import PACKAGE, build_tokenizer
from st3.demo.scenes import (
    Scene,
    SceneObject,
    render,
)
from st3.demo.tasks import TASKS, ask
from st3.demo.training.tower_stage import normalise
from st3.inference.generation import answer
from st3.inference.pictures import open_picture
from st3.methods import make_method
from st3.proportion import interval

SCENE = Scene((SceneObject(0, "red", "star"), SceneObject(4, "blue", "circle")))


@pytest.fixture(scope="module")
def packaged() -> Any:
    return st3.load("demo", device="cpu")


def test_tokenizer_splits_as_training_does() -> None:
    tokenizer, ids = build_tokenizer(), vocabulary()
    rng = np.random.default_rng(0)
    texts = [nonsense(rng) for _ in range(50)]
    texts += ["USER: <image>\nWhat's in THE picture?? ASSISTANT:", "a,b. c!", "Ünïcode 42 red-star"]
    for task in TASKS:
        texts += [ask(task, SCENE, rng).prompt for _ in range(20)]
    for text in texts:
        want = [ids.get(word, ids["<unk>"]) for word in split(text)]
        assert tokenizer.encode(text, add_special_tokens=False) == want
    said = caption(SCENE)
    assert tokenizer.decode(tokenizer.encode(said), skip_special_tokens=True) == said
    assert list(ids)[: len(SPECIAL)] == list(SPECIAL)
    assert all(word in ids for forms in FORMS.values() for form in forms
               for word in split(form) if "{" not in form)  # fmt: skip


def test_processor_gives_the_pixels_of_training(packaged: Any) -> None:
    picture = render(SCENE, np.random.default_rng(0)).picture
    pixels = packaged[1].image_processor(picture, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(pixels, normalise(picture), atol=1e-4, rtol=1e-4)


def test_package_is_small_and_safe() -> None:
    files = {path.name: path.stat().st_size for path in PACKAGE.iterdir()}
    assert sum(files.values()) < 15_000_000
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= set(
        files
    )
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth"))]
    assert "/" not in json.dumps(json.loads((PACKAGE / "config.json").read_text()))


@pytest.mark.slow
def test_gates(packaged: Any) -> None:
    """0.95 on every task, and ST3 loses a point at most: bounds leave two standard errors.

    The sample is small, for the time it takes; docs/demo-model.md has a large one.
    """
    scenes = 10
    methods = {name: make_method(name) for name in ("none", "st3")}
    found = evaluate(*packaged, methods, scenes=scenes, seed=991, tasks=tuple(TASKS))
    assert set(found["none"]) == set(TASKS)
    for task, (right, asked) in found["none"].items():
        trimmed, same = found["st3"][task]
        assert same == asked <= scenes
        assert right / asked >= 0.95 - 2 * (0.05 * 0.95 / asked) ** 0.5, task
        assert trimmed >= right - 1 - 0.01 * asked, task


def test_intervals_hold_what_they_promise() -> None:
    """Against the exact probability that the interval covers the share that made the counts."""
    asked = 60
    for share in (0.5, 0.8, 0.95):
        covered = 0.0
        for right in range(asked + 1):
            low, high = interval(right, asked)
            probability = math.comb(asked, right) * share**right * (1 - share) ** (asked - right)
            covered += probability * (low <= share <= high)
        assert 0.91 < covered < 0.99
    assert interval(60, 60)[1] == 1.0
    assert interval(60, 60)[0] == pytest.approx(0.9398, abs=1e-3)


@pytest.mark.parametrize(
    "prompt",
    [
        "describe",
        "Describe this picture.",
        "what do you see?",
        "WHAT DO YOU SEE",
        "Please describe the image!",
        "What's happening here?",
        "tell me a story about this",
        "qwertz",
    ],
)
@pytest.mark.parametrize("method", ["st3", *slow("none")])
def test_free_prompts_lead_to_the_caption(packaged: Any, prompt: str, method: str) -> None:
    result = answer(*packaged, open_picture(demo.PICTURE), prompt, make_method(method))
    assert result.text == (
        "at the top centre a black star, at the top right a purple square, in the centre an orange "
        "cross and at the centre right a blue circle."
    )


@pytest.mark.parametrize(
    "style", ["poster", *slow(*(style for style in STYLES if style != "poster"))]
)
def test_pictures_that_other_people_drew(packaged: Any, style: str, tmp_path: Path) -> None:
    """Other programs, sizes, shapes and formats, read from files as a user's are; one may fail."""
    wrong = []
    for things in SCENES:
        picture = open_picture(str(STYLES[style](things, tmp_path)))
        want = caption(Scene(tuple(SceneObject(*thing) for thing in things)))
        got = answer(*packaged, picture, "Describe this picture.", make_method("st3")).text
        if got != want:
            wrong.append((want, got))
    assert len(wrong) <= 1, wrong


@pytest.mark.parametrize("prompt", ["?", "🦄", "who is the president of the moon", "1 + 1 ="])
def test_questions_outside_its_world_get_some_answer(packaged: Any, prompt: str) -> None:
    result = answer(*packaged, open_picture(demo.PICTURE), prompt, make_method("st3"))
    assert result.text


@pytest.mark.slow
def test_evaluate_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "st3.demo.evaluate", "--methods", "none,st3:final_keep=1%"]
    saved = tmp_path / "accuracy.json"
    options = ["--scenes", "1", "--seed", "5", "--output", str(saved)]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "| task | questions | none | st3:final_keep=1% |" in done.stdout
    document = json.loads(saved.read_text())
    tasks = {row["task"] for row in document["accuracy"]}
    assert {"describe", "count"} <= tasks <= set(TASKS)
    assert all(row["low"] <= row["right"] / row["asked"] for row in document["accuracy"])
    wrong = subprocess.run([*command, "--task", "dance"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "unknown task 'dance'" in wrong.stderr
