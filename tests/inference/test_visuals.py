"""Several pictures and videos on their way into a model, with the processors of their families."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families.checkpoints import CHECKPOINTS, save_checkpoint
from PIL import Image
from transformers.video_utils import VideoMetadata

import st3
from st3.demo.packaging import build_processor
from st3.families.base import visual_mask
from st3.families.parts import find_parts
from st3.inference.chat import in_chat_format
from st3.inference.generation import answer, find_places, prepare
from st3.inference.places import NOWHERE
from st3.inference.videos import Clip, Video
from st3.inference.visuals import FRAMES, frames_of, takes_videos, with_pictures

PROMPT = "what do you see"
FILMS = [name for name, made in CHECKPOINTS.items() if made.films]
SIZE = (168, 112)
TOGETHER = {"qwen2_5_vl": 2, "qwen3_vl": 2}  # frames that share their tokens
needs_torchvision = pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None, reason="video processors need torchvision"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@lru_cache(maxsize=1)
def _loaded(name: str, folder: Path) -> tuple[Any, Any]:
    place = folder / name
    if not place.exists():
        save_checkpoint(name, place)
    return st3.load(str(place), device="cpu")


def _noise(seed: int, size: tuple[int, int] = SIZE) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BILINEAR)


def _video(total: int, fps: float, size: tuple[int, int] = (64, 48)) -> Video:
    def decode(indices: Any) -> Any:
        return (_noise(index, size) for index in indices)

    return Video("v", tuple(n / fps for n in range(total)), fps, size, True, decode)


def _clip(count: int, size: tuple[int, int] = SIZE) -> Clip:
    return _video(count, 2.0, size).take(range(count))


def test_each_picture_has_a_place() -> None:
    processor = build_processor()
    want = "USER: <image>\n<image>\n<image>\nwhat? ASSISTANT:"
    each = "{% for m in messages %}"
    processor.chat_template = each + "USER: {{ m['content'] }}{% endfor %} ASSISTANT:"
    assert in_chat_format(processor, "what?", 3) == want
    processor.chat_template = each + "<image>{% endfor %}"
    with pytest.raises(ValueError, match="it has 1 place for 3 pictures"):
        in_chat_format(processor, "what?", 3)
    processor.chat_template = None
    with pytest.warns(UserWarning, match="no chat template"):
        assert in_chat_format(processor, "what?", 3) == want
    processor.chat_template = each + "<image>{% endfor %}"
    with pytest.raises(ValueError, match=r"no place for it.* <video> once for each part of"):
        in_chat_format(processor, "what?", video=True)


@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl", "gemma3"])
def test_several_pictures_are_those_of_the_prompt(name: str, folder: Path) -> None:
    """In their order, of their own sizes, each with the visual tokens that it has alone."""
    model, processor = _loaded(name, folder)
    pictures = [_noise(1, (100, 60)), _noise(2, (60, 120))]
    ids = find_parts(model).visual_ids
    both = prepare(model, processor, pictures, PROMPT)
    alone = [prepare(model, processor, picture, PROMPT) for picture in pictures]
    counts = [int(visual_mask(ids, inputs["input_ids"]).sum()) for inputs in alone]
    assert int(visual_mask(ids, both["input_ids"]).sum()) == sum(counts)
    assert torch.equal(both["pixel_values"], torch.cat([one["pixel_values"] for one in alone]))
    places = find_places(model, processor, pictures, PROMPT)
    assert [sum(v.tokens for v in places.views if v.picture == n) for n in (0, 1)] == [
        count - sum(n in places.nowhere for n in range(first, first + count))
        for first, count in ((0, counts[0]), (counts[0], counts[1]))
    ]
    assert places.seen.startswith("2 pictures, seen ")
    assert answer(model, processor, pictures, PROMPT, max_new_tokens=2).new_tokens == 2


def test_no_pictures_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="at least one picture"):
        prepare(*_loaded("gemma3", folder), [], PROMPT)


def test_frames_as_pictures(folder: Path) -> None:
    """A family without videos: the same inputs as of these pictures."""
    model, processor = _loaded("gemma3", folder)
    assert not takes_videos(processor)
    clip = _clip(3)
    inputs, same = (prepare(model, processor, shown, PROMPT) for shown in (clip, clip.frames))
    assert all(torch.equal(inputs[key], same[key]) for key in same)
    places = find_places(model, processor, clip, PROMPT)
    assert [view.picture for view in places.views] == [0, 1, 2]
    assert frames_of(_video(100, 10.0), processor) == [n * 100 // FRAMES for n in range(FRAMES)]
    assert frames_of(_video(3, 10.0), processor) == [0, 1, 2]


def test_more_frames_than_fit(folder: Path) -> None:
    """The message says how many do, and so many do."""
    model, processor = _loaded("llava_next", folder)
    clip = _clip(9, (672, 672))
    with pytest.raises(ValueError, match=r"9 frames and prompt .* context is 4096: give") as caught:
        prepare(model, processor, clip, PROMPT)
    fit = int(str(caught.value).partition("--frames ")[2].partition(",")[0])
    assert prepare(model, processor, clip.some(fit), PROMPT)["input_ids"].shape[1] < 4096
    with pytest.raises(ValueError, match=f"{fit + 1} frames? and prompt"):
        prepare(model, processor, clip.some(fit + 1), PROMPT)
    with pytest.raises(ValueError, match=r"1 frame and prompt .*: shorten the prompt by at least"):
        prepare(model, processor, clip.some(1), "red " * 4096)


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="it is there")
@pytest.mark.parametrize("name", FILMS)
def test_videos_without_torchvision(name: str, folder: Path) -> None:
    model, processor = _loaded(name, folder)
    with pytest.raises(ValueError, match=r"videos need torchvision: pip install 'st3\[vision\]'"):
        prepare(model, processor, _clip(4), PROMPT)


@needs_torchvision
@pytest.mark.parametrize(("total", "fps"), [(240, 24.0), (7, 5.0), (1, 1.0)])
@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "smolvlm"])
def test_the_checkpoint_samples(name: str, total: int, fps: float, folder: Path) -> None:
    """The frames that its video processor takes of all of them, and what it makes of them."""
    _, processor = _loaded(name, folder)
    video = _video(total, fps)
    chosen = frames_of(video, processor)
    whole = np.stack([np.asarray(frame) for frame in video.take(range(total)).frames])
    metadata = VideoMetadata(total_num_frames=total, fps=fps, duration=total / fps)
    own = processor.video_processor
    how: dict[str, Any] = {"do_sample_frames": True, "return_metadata": True}
    if name == "smolvlm":  # as its processor asks
        how |= {"num_frames": own.num_frames, "fps": own.fps}
    try:
        made = own([whole], video_metadata=[metadata], return_tensors="pt", **how)
    except (ValueError, ZeroDivisionError):
        assert chosen == list(range(total))  # it wants more than there are
        return
    assert chosen == [int(index) for index in made["video_metadata"][0].frames_indices]


@needs_torchvision
@pytest.mark.parametrize("name", FILMS)
def test_frames_and_quarters(name: str, folder: Path) -> None:
    """What changes for the decoder when a quarter of one frame does: its tokens, and no others."""
    model, processor = _loaded(name, folder)
    frames = 4
    clip = _clip(frames)
    tower: Any = model.get_encoder(modality="image")
    hooks = [
        module.register_forward_hook(_nothing)
        for module in tower.modules()
        if "Attention" in type(module).__name__
    ]
    try:
        before = _arriving(model, processor, clip)
        places = find_places(model, processor, clip, PROMPT)
        assert places.count == len(before)
        together = TOGETHER.get(name, 1)
        assert len(places.views) == frames // together
        assert places.seen.startswith(f"{frames} frames, seen {frames // together} times")
        for number, right, below in ((0, 0, 0), (2, 1, 0), (3, 1, 1)):
            pixels = np.array(clip.frames[number])
            half = (SIZE[1] // 2, SIZE[0] // 2)
            area = np.s_[
                below * half[0] : (below + 1) * half[0], right * half[1] : (right + 1) * half[1]
            ]
            pixels[area] = 255 - pixels[area]
            other = list(clip.frames)
            other[number] = Image.fromarray(pixels)
            after = _arriving(model, processor, with_pictures(clip, other))
            moved = (after - before).abs().max(1).values > 1e-5 * before.abs().max()
            changed = set(np.flatnonzero(moved.numpy()).tolist())
            inside, outside = _tokens(places, number // together, right, below)
            assert len(inside & changed) >= 0.95 * len(inside) > 0
            assert not changed & outside
            assert not changed & set(places.nowhere)
    finally:
        for hook in hooks:
            hook.remove()


def _nothing(module: Any, args: Any, out: Any) -> Any:
    return (out[0] * 0, *out[1:]) if isinstance(out, tuple) else out * 0


def _arriving(model: Any, processor: Any, clip: Any) -> torch.Tensor:
    """What the decoder gets for visual tokens, [tokens, hidden]."""
    inputs, parts = prepare(model, processor, clip, PROMPT), find_parts(model)
    found: list[torch.Tensor] = []
    hook = parts.decoder.register_forward_pre_hook(
        lambda module, args, kwargs: found.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        hook.remove()
    return found[0][visual_mask(parts.visual_ids, inputs["input_ids"])]


def _tokens(places: Any, picture: int, right: int, below: int) -> tuple[set[int], set[int]]:
    """Those well inside of a quarter of one view; those well outside of it, or of other views."""
    inside, outside = set(), set()
    for view in places.views:
        height, width = view.owner.shape
        for token in np.unique(view.owner[view.owner != NOWHERE]).tolist():
            rows, columns = np.nonzero(view.owner == token)
            x = np.array([columns.min(), columns.max() + 1]) / width
            y = np.array([rows.min(), rows.max() + 1]) / height
            x, y = 1 - x[::-1] if right else x, 1 - y[::-1] if below else y
            if view.picture != picture or x[0] > 0.56 or y[0] > 0.56:
                outside.add(token)
            elif x[1] < 0.44 and y[1] < 0.44:
                inside.add(token)
    return inside, outside


@needs_torchvision
def test_what_a_processor_refuses(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Qwen3-VL's does a single frame, in some versions."""
    model, processor = _loaded("qwen3_vl", folder)

    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("t:1 must be larger")

    monkeypatch.setattr(processor.video_processor, "preprocess", refuse)
    with pytest.raises(ValueError, match="takes no video of 1 frame of 168 x 112 pixels: "):
        prepare(model, processor, _clip(1), PROMPT)
