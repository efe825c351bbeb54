"""The demo says when it is shown another world: no false alarm on its own, and photographs."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image, ImageDraw

from st3 import demo
from st3.demo.likeness import of_this_world
from st3.demo.scenes import render, sample_scene

PHOTO = Path(mpl.get_data_path()) / "sample_data" / "grace_hopper.jpg"


def compressed(picture: Image.Image, quality: int) -> Image.Image:
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=quality)
    return Image.open(data)


@pytest.mark.slow
def test_no_false_alarm_on_its_own_pictures() -> None:
    """Whatever the ground, as rendered, compressed, and scaled to other shapes."""
    rng = np.random.default_rng(5)
    assert of_this_world(Image.open(demo.PICTURE))
    for number in range(300):
        scene = sample_scene(rng, objects=(1, 9), held_out=None)
        picture = render(scene, rng).picture
        width, height = (int(side) for side in rng.integers(48, 900, 2))
        for shown in (
            picture, compressed(picture, int(rng.integers(20, 95))),
            picture.resize((width, height), Image.Resampling.BICUBIC),
        ):  # fmt: skip
            assert of_this_world(shown), number


def test_a_drawing_of_its_shapes_passes() -> None:
    """As a user may make one, out of the cells and over the rim."""
    picture = Image.new("RGB", (640, 480), "white")
    draw = ImageDraw.Draw(picture)
    draw.ellipse((-40, 60, 220, 320), fill="red")
    draw.rectangle((300, 200, 500, 400), fill="blue")
    assert of_this_world(picture)


def photo_like(rng: np.random.Generator) -> Image.Image:
    """Colours that change at every scale, as those of a photograph do (1 / f)."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(128), np.fft.rfftfreq(128), indexing="ij"))
    frequency[0, 0] = 1
    channels = [np.fft.irfft2(np.fft.rfft2(rng.normal(size=(128, 128))) / frequency)
                for _ in range(3)]  # fmt: skip
    spread = [110 + 60 * (x - x.mean()) / x.std() for x in channels]
    return Image.fromarray(np.stack(spread, -1).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("seed", range(5))
def test_what_is_coloured_like_a_photograph_is_foreign(seed: int) -> None:
    assert not of_this_world(photo_like(np.random.default_rng(seed)))


def test_a_photograph_is_foreign() -> None:
    with Image.open(PHOTO) as photo:
        assert not of_this_world(photo)
        assert not of_this_world(photo.resize((64, 64)))


def test_a_dark_ground_is_foreign() -> None:
    picture = Image.new("RGB", (192, 192), "black")
    ImageDraw.Draw(picture).ellipse((20, 20, 80, 80), fill="red")
    assert not of_this_world(picture)
