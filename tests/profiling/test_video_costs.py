"""What `st3 profile --video` counts, against prompts that the families' own processors make."""

from __future__ import annotations

import importlib.util
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families.checkpoints import CHECKPOINTS, save_checkpoint
from PIL import Image

import st3
from st3.families.base import visual_mask
from st3.families.parts import find_parts
from st3.inference.generation import prepare
from st3.inference.presets import known_config
from st3.inference.videos import Clip
from st3.methods import make_method
from st3.profiling import picture
from st3.profiling.picture import picture_of

FILMS = [name for name, made in CHECKPOINTS.items() if made.films]
HERE = importlib.util.find_spec("torchvision") is not None
needs_torchvision = pytest.mark.skipif(not HERE, reason="video processors need torchvision")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@lru_cache(maxsize=1)
def _loaded(name: str, folder: Path) -> tuple[Any, Any]:
    return st3.load(str(save_checkpoint(name, folder / name)), device="cpu")


@needs_torchvision
@pytest.mark.parametrize("shown", [(4, 168, 112), (6, 90, 200)], ids=str)
@pytest.mark.parametrize("name", FILMS)
def test_tokens_are_those_of_a_prompt(name: str, shown: tuple[int, int, int], folder: Path) -> None:
    model, processor = _loaded(name, folder)
    frames, *size = shown
    picture = Image.fromarray(np.zeros((size[1], size[0], 3), dtype=np.uint8))
    numbers = tuple(range(frames))
    clip = Clip("v", (picture,) * frames, numbers, tuple(map(float, numbers)), frames, 1.0)
    ids = prepare(model, processor, clip, "what do you see")["input_ids"]
    want = int(visual_mask(find_parts(model).visual_ids, ids).sum())
    assert picture_of(model.config, (size[0], size[1]), frames=frames).tokens == want


@needs_torchvision
def test_macs_of_patches_by_hand() -> None:
    """Sixteen frames of 448 x 448 in pairs: 8 x 32 x 32 patches, a quarter as many tokens."""
    found = picture_of(known_config("qwen2.5-vl-7b"), (448, 448), frames=16)
    patches = 8 * 32 * 32
    assert found.tokens == patches // 4
    one = picture_of(known_config("qwen2.5-vl-7b"), (448, 448))  # a frame twice, in one pair
    assert one.tokens == 256
    assert found.vision_macs == 8 * one.vision_macs  # no patch sees those of another pair
    assert found.projector_macs == 8 * one.projector_macs


def test_a_method_of_frames_is_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen frames in pairs of 256 tokens, as the processor would hand them on."""

    def processor(films: Any, **_: Any) -> dict[str, torch.Tensor]:
        patches = torch.zeros(8 * 32 * 32, 3 * 2 * 14 * 14)
        return {"pixel_values_videos": patches, "video_grid_thw": torch.tensor([[8, 32, 32]])}

    monkeypatch.setattr(picture, "video_processor_for", lambda config: processor)
    monkeypatch.setattr(picture, "_FOUND", {})
    config = known_config("qwen2.5-vl-7b")
    film, still = picture_of(config, (448, 448), frames=16), picture_of(config, (448, 448))
    assert film.tokens == 8 * 256
    for spec, want in (("evs:drop-90%", 256), ("evs:drop-75%", 512)):  # a pair of frames at least
        schedule = make_method(spec).schedule(28)
        assert schedule.count(1, film.tokens, like=film.piece) == want
        assert schedule.count(1, still.tokens, like=still.piece) == still.tokens


@needs_torchvision
def test_profile_counts_a_video(st3_: Any) -> None:
    result = st3_(
        "profile", "--model", "qwen2.5-vl-7b", "--video", "16x448x448", "--methods", "st3", "--json"
    )
    assert result.code == 0, result.err
    document = json.loads(result.out)
    assert document["settings"]["visual_tokens"] == 2048
    assert document["shape"]["video_frames"] == 16
    assert document["rows"][0]["vision_macs"] > 0
    assert document["rows"][0]["ttft_ms"] is None
    assert "Latency not measured: of a video only" in document["notes"][0]


def test_frames_of_a_family_without_videos(st3_: Any) -> None:
    asked = ("profile", "--model", "7b", "--methods", "st3", "--no-latency", "--json")
    result = st3_(*asked, "--video", "4x448x448")
    assert "its frames are counted as pictures" in result.err
    same = st3_(*asked, "--picture", "448x448", "--pictures", 4)
    found, want = (json.loads(one.out) for one in (result, same))
    assert found["rows"] == want["rows"]
    assert found["settings"]["visual_tokens"] == 4 * 576


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--video", "4x448"], 2, "give frames x width x height"),
        (["--video", "0x448x448"], 2, "give frames x width x height"),
        (["--video", "4x448x0"], 2, "give width x height"),
        (["--video", "99999x4480x4480"], 2, "are more than 4 GB"),
        (["--video", "4x8x8", "--picture", "8x8"], 2, "--video says what is shown"),
        (["--video", "4x8x8", "--pictures", "2"], 2, "--video says what is shown"),
        (["--video", "4x8x8", "--visual-tokens", "9"], 2, "--video says what is shown"),
        (["--video", "4x8x8", "--operators"], 2, "counted, not timed"),
        pytest.param(
            ["--video", "4x448x448"], 1, "videos need torchvision: pip install 'st3[vision]'",
            marks=pytest.mark.skipif(HERE, reason="it is there"),
        ),
    ],
)  # fmt: skip
def test_bad_input(options: list[str], code: int, words: str, st3_: Any) -> None:
    result = st3_("profile", "--model", "qwen2.5-vl-7b", *options)
    assert (result.code, result.out) == (code, "")
    assert words in " ".join(result.err.replace("│", "").split())
