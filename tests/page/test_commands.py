"""The `st3 run` that the page shows: a shell understands it, and it answers what the page did."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from conftest import slow

import st3
from st3 import demo
from st3.inference.pictures import open_picture
from st3.page.asking import Host
from st3.page.view import OWN, View, read_method, turned


def test_the_command_is_understood_by_a_shell(st3_: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """And by st3, which makes the file that it names."""
    monkeypatch.chdir(tmp_path)
    command = View(picture="five", prompt="What's it?", tokens=2, compare=False).command("demo")
    words = shlex.split(command)
    assert words[:4] == ["st3", "run", "demo:five", "What's it?"]
    ran = st3_(*words[1:], "--device", "cpu")
    assert ran.code == 0, ran.err
    assert (tmp_path / "kept.png").exists()
    own = View(picture=OWN, method="fastv:k=2").command("7b", "a b.jpg", ["--dtype", "bfloat16"])
    assert shlex.split(own)[2] == "a b.jpg"
    assert "--model 7b --dtype bfloat16 --method fastv:k=2" in own


@pytest.fixture(scope="module")
def of_demo() -> Host:
    return Host(*st3.load("demo", device="cpu"), "demo")


@pytest.mark.parametrize(
    ("knob", "value"),
    [("prune_ratio", 70.0), ("tau", 0), ("scorer", "prompt-3-layers"), ("compare", False),
     *slow(("stride", 9), ("ratio", 2.5), ("final_keep", 20.0), ("tau", 5), ("tokens", 3))],
)  # fmt: skip
def test_the_command_answers_as_the_page(
    of_demo: Host, st3_: Any, tmp_path: Path, monkeypatch: Any, knob: str, value: Any
) -> None:
    """For every control: the same words, of as many tokens, with as many kept in each layer."""
    monkeypatch.chdir(tmp_path)
    view = View("pair", tokens=10)
    if knob in ("tokens", "compare"):
        view = dataclasses.replace(view, **{knob: value})
    else:
        method = turned("st3", knob, value, of_demo.layers)
        assert method != "st3"
        view = dataclasses.replace(view, method=method)
    method = read_method(view.method, of_demo.layers)
    picture = open_picture(demo.PICTURES[view.picture])
    *_, seen = of_demo.ask(picture, view.prompt, method, view.tokens, view.compare)
    command = shlex.split(view.command("demo"))
    ran = json.loads(st3_(*command[1:], "--json", "--device", "cpu").out)
    ours = seen.answers["trimmed"]
    assert ours.session is not None
    kept = ours.session.kept_per_layer()
    assert (ran["answer"], ran["new_tokens"]) == (ours.text, ours.new_tokens)
    assert ran["visual_tokens"]["kept_per_layer"] == kept
    assert ("untrimmed" in seen.answers) == view.compare == ("--compare" in command)
