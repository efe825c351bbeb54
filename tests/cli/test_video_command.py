"""`st3 run` and `attention-map` with several pictures, and with videos, as people give them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import tiny_checkpoint
from families.checkpoints import save_checkpoint
from PIL import Image

from st3 import demo

QUESTION = "what do you see"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 64 visual tokens a picture; pictures, a GIF of six frames, a folder of four."""
    folder = tmp_path_factory.mktemp("videos")
    tiny_checkpoint(folder / "model")
    frames = [Image.new("RGB", (80, 64), (40 * n, 0, 200)) for n in range(6)]
    frames[0].save(folder / "a.gif", save_all=True, append_images=frames[1:], duration=500)
    (folder / "frames").mkdir()
    for number, frame in enumerate(frames[:4]):
        frame.save(folder / "frames" / f"{number}.png")
        frame.save(folder / f"{number}.png")
    return folder


@pytest.fixture
def ask(folder: Path, st3_: Any) -> Any:
    def run(*arguments: object, command: str = "run") -> Any:
        tokens = "--max-new-tokens" if command == "run" else "--new-tokens"
        return st3_(command, *arguments, "--model", folder / "model", tokens, 2)

    return run


def test_several_pictures(folder: Path, ask: Any) -> None:
    drawn = folder / "kept.png"
    pictures = [folder / f"{n}.png" for n in range(3)]
    result = ask(*pictures, QUESTION, "--show-kept", drawn, "--json")
    assert result.code == 0, result.err
    document = json.loads(result.out)
    assert document["visual_tokens"]["total"] == 3 * 64
    assert (document["prompt"], "video" in document) == (QUESTION, False)
    assert np.asarray(Image.open(drawn)).std() > 5


def test_options_may_stand_among_the_arguments(folder: Path, ask: Any) -> None:
    result = ask(folder / "0.png", "--json", folder / "1.png", "--temperature", 0, QUESTION)
    assert json.loads(result.out)["visual_tokens"]["total"] == 2 * 64


def test_a_gif_is_a_video(folder: Path, ask: Any) -> None:
    result = ask(folder / "a.gif", QUESTION, "--frames", 3, "--json")
    assert result.code == 0, result.err
    document = json.loads(result.out)
    assert document["visual_tokens"]["total"] == 3 * 64
    assert document["video"] == {
        "source": str(folder / "a.gif"), "frames": [0, 2, 4], "seconds": [0.0, 1.0, 2.0],
        "total_frames": 6, "fps": 2.0,
    }  # fmt: skip
    assert "a.gif, 3 of 6 frames, at 0.0 to 2.0 s" in result.err
    assert result.err.count("takes no videos: it is shown the frames as pictures") == 1
    by_rate = ask(folder / "a.gif", QUESTION, "--fps", 1, "--json")
    assert json.loads(by_rate.out)["video"]["frames"] == [0, 2, 4]
    every = ask(folder / "a.gif", QUESTION, "--json")
    assert json.loads(every.out)["video"]["frames"] == list(range(6))


def test_a_folder_is_a_video(folder: Path, ask: Any) -> None:
    drawn = folder / "folder.png"
    result = ask(folder / "frames", QUESTION, "--show-kept", drawn)
    assert result.code == 0, result.err
    assert "frames, 4 of 4 frames\n" in result.err
    assert drawn.exists()


def test_attention_map_of_a_video(folder: Path, ask: Any) -> None:
    where = folder / "look"
    result = ask(
        folder / "a.gif", QUESTION, "--frames", 2, "--output", where, "--json",
        command="attention-map",
    )  # fmt: skip
    assert result.code == 0, result.err
    for document in (json.loads(result.out), json.loads((where / "attention.json").read_text())):
        assert (document["visual_tokens"], document["video"]["frames"]) == (2 * 64, [0, 3])


def test_a_film(folder: Path, ask: Any) -> None:
    pytest.importorskip("av")
    from inference.test_videos import film

    path = film(folder / "a.mp4", [n / 10 for n in range(30)])
    result = ask(path, QUESTION, "--frames", 3, "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)["video"]
    assert (found["frames"], found["seconds"]) == ([0, 10, 20], pytest.approx([0, 1, 2]))


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["a.gif", "what", "--frames", "0"], 2, "--frames"),
        (["a.gif", "what", "--frames", "2", "--fps", "1"], 2, "give one of them"),
        (["a.gif", "what", "--fps", "0"], 2, "--fps: give a number above 0"),
        (["a.gif", "what", "--fps", "nan"], 2, "--fps: give a number above 0"),
        (["a.gif", "what", "--frames", "7"], 1, "has 6 frames, not 7: give --frames 6 at most"),
        (["frames", "what", "--fps", "1"], 1, "has no times"),
        (["0.png", "what", "--frames", "2"], 2, "--frames goes with a video"),
        (["0.png", "a.gif", "what"], 2, "a.gif is a video: show it alone"),
        (["0.png", "1.png"], 2, "the prompt comes last, and 1.png is a file"),
        (["0.png", "1.png", ""], 2, "the prompt is empty"),
        (["", "1.png", "what"], 2, "the picture is empty"),
        (["0.png", "none.png", "what"], 1, "no file none.png"),
        (["empty", "what"], 1, "empty is a folder without frames"),
        (["notes.txt", "what"], 1, "not a picture that Pillow can read, nor a video"),
        (["broken.gif", "what"], 1, "broken.gif is a damaged animation"),
        (["mixed", "what"], 1, "frames of a video have one size"),
        (["many", "what", "--frames", "99"], 1, "99 frames and prompt make"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], code: int, words: str, folder: Path, tmp_path: Path, ask: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name in ("0.png", "1.png", "a.gif"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    for name, count in (("empty", 0), ("mixed", 2), ("frames", 2), ("many", 99)):
        (tmp_path / name).mkdir()
        for n in range(count):
            size = (8 + 2 * n, 8) if name == "mixed" else (8, 8)
            Image.new("RGB", size).save(tmp_path / name / f"{n}.png")
    (tmp_path / "notes.txt").write_text("some words", encoding="utf-8")
    (tmp_path / "broken.gif").write_bytes((folder / "a.gif").read_bytes()[:-60])
    result = ask(*arguments)
    assert (result.code, result.out) == (code, "")
    assert words in " ".join(result.err.split()), result.err
    if code == 1:
        said = [line for line in result.err.splitlines() if line.startswith("st3: ")]
        assert len(said) == 1


def test_the_message_says_how_many_frames_fit(folder: Path, tmp_path: Path, ask: Any) -> None:
    for n in range(40):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{n}.png")
    few = ask(tmp_path, QUESTION)
    assert few.code == 0
    assert "note: the model's context holds " in few.err
    result = ask(tmp_path, QUESTION, "--frames", 40)
    assert result.code == 1
    fit = result.err.partition("give --frames ")[2].partition(",")[0]
    assert ask(tmp_path, QUESTION, "--frames", fit).code == 0
    assert ask(tmp_path, QUESTION, "--frames", int(fit) + 1).code == 1


def test_the_demo_says_that_frames_are_not_of_its_world(folder: Path, st3_: Any) -> None:
    result = st3_("run", folder / "a.gif", QUESTION, "--frames", 1, "--max-new-tokens", 1)
    assert "not look like the demo model's world" in result.err


def test_one_argument_is_a_picture_as_ever(st3_: Any) -> None:
    result = st3_("run", demo.PICTURE, "--json", "--max-new-tokens", 1)
    assert json.loads(result.out)["prompt"] == demo.PROMPT
    assert "no file what is this?: the picture comes first" in st3_("run", "what is this?").err


@pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None, reason="video processors need torchvision"
)
def test_a_family_that_takes_videos(folder: Path, tmp_path: Path, st3_: Any) -> None:
    place, drawn = save_checkpoint("qwen3_vl", tmp_path / "model"), tmp_path / "kept.png"
    result = st3_(
        "run", folder / "a.gif", QUESTION, "--model", place, "--max-new-tokens", 2, "--json",
        "--show-kept", drawn, "--frames", 6,
    )  # fmt: skip
    assert result.code == 0, result.err
    assert "as pictures" not in result.err
    document = json.loads(result.out)
    assert document["video"]["frames"] == list(range(6))
    assert document["visual_tokens"]["total"] % 3 == 0  # frames go in pairs
    assert drawn.exists()
