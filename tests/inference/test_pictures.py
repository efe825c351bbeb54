"""Pictures are opened as a viewer shows them, and bad ones are named in one line."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from st3.inference.generation import prepare
from st3.inference.loading import load
from st3.inference.pictures import PictureError, check_processed, open_picture

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def two_halves(mode: str = "RGB") -> Image.Image:
    """Left red, right blue, 40 x 20."""
    image = Image.new("RGB", (40, 20), RED)
    image.paste(BLUE, (20, 0, 40, 20))
    return image.convert(mode)


def close(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return all(abs(x - y) < 40 for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    ("orientation", "top_left", "size"),
    [
        (1, RED, (40, 20)),
        (2, BLUE, (40, 20)),
        (3, BLUE, (40, 20)),
        (6, RED, (20, 40)),
        (8, BLUE, (20, 40)),
    ],
)
def test_exif_rotation(
    tmp_path: Path, orientation: int, top_left: tuple[int, ...], size: tuple[int, int]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    two_halves().save(tmp_path / "a.jpg", exif=exif, quality=95)
    image = open_picture(tmp_path / "a.jpg")
    assert image.size == size
    assert close(image.getpixel((2, 2)), top_left)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("a.png", "P"),
        ("a.gif", "P"),
        ("a.jpg", "CMYK"),
        ("a.tif", "CMYK"),
        ("a.webp", "RGB"),
        ("a.bmp", "RGB"),
    ],
)
def test_modes(tmp_path: Path, name: str, mode: str) -> None:
    two_halves(mode).save(tmp_path / name)
    image = open_picture(tmp_path / name)
    assert image.mode == "RGB"
    assert close(image.getpixel((4, 10)), RED)
    assert close(image.getpixel((35, 10)), BLUE)


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (10, 10), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 5, 10))
    image.save(tmp_path / "a.png")
    Image.new("LA", (4, 4), (0, 0)).save(tmp_path / "b.png")
    palette = two_halves("P")
    palette.info["transparency"] = palette.getpixel((30, 10))
    palette.save(tmp_path / "c.gif", transparency=palette.getpixel((30, 10)))
    assert open_picture(tmp_path / "a.png").getpixel((8, 5)) == WHITE
    assert open_picture(tmp_path / "a.png").getpixel((2, 5)) == RED
    assert open_picture(tmp_path / "b.png").getpixel((2, 2)) == WHITE
    assert open_picture(tmp_path / "c.gif").getpixel((30, 10)) == WHITE


def test_sixteen_bits(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    Image.fromarray(ramp).save(tmp_path / "a.tif")
    for name in ("a.png", "a.tif"):
        grey = np.asarray(open_picture(tmp_path / name))[..., 0].ravel().astype(int)
        assert np.abs(grey - np.arange(256)).max() <= 1
    Image.fromarray(np.full((4, 4), 0.5, dtype=np.float32)).save(tmp_path / "f.tif")
    assert open_picture(tmp_path / "f.tif").getpixel((1, 1)) == (128, 128, 128)


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), c) for c in (RED, BLUE)]
    for name in ("a.gif", "a.webp", "a.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert close(open_picture(tmp_path / name).getpixel((4, 4)), RED)


def _png(**kwargs: object) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((200, 200), 50).save(buffer, "PNG", **kwargs)
    return buffer.getvalue()


def _bomb() -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: b"", "is empty"),
        (lambda: b"hello, I am text", "not a picture"),
        (lambda: _png()[:9000], "damaged"),
        (lambda: _png()[:40], "damaged|not a picture"),
        (_bomb, "million"),
    ],
)
def test_bad_files(tmp_path: Path, content: Callable[[], bytes], message: str) -> None:
    (tmp_path / "a.png").write_bytes(content())
    with pytest.raises(PictureError, match=message) as caught:
        open_picture(tmp_path / "a.png")
    assert "\n" not in str(caught.value)


def test_places_that_are_no_file(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="is a folder"):
        open_picture(tmp_path)
    with pytest.raises(PictureError, match="no file"):
        open_picture(tmp_path / "missing.png")


def processor(size: dict[str, int], **more: object) -> CLIPImageProcessorPil:
    """CLIP's, with a centre crop."""
    return CLIPImageProcessorPil(size=size, crop_size={"height": 336, "width": 336}, **more)


NARROW = [((30_000, 4), "30000 x 4 .* 2520000 x 336"), ((3, 4000), "3 x 4000 .* 336 x 448000")]


@pytest.mark.parametrize(("shape", "message"), NARROW)
def test_a_picture_that_a_processor_would_blow_up(shape: tuple[int, int], message: str) -> None:
    with pytest.raises(PictureError, match=f"{message}: crop it"):
        check_processed(Image.new("RGB", shape), processor({"shortest_edge": 336}))


@pytest.mark.parametrize(
    ("shape", "size", "more"),
    [
        ((30_000, 4), {"height": 336, "width": 336}, {}),
        ((4000, 4), {"shortest_edge": 336, "longest_edge": 1333}, {}),
        ((30_000, 4), {"shortest_edge": 336}, {"do_resize": False}),
        ((1000, 5), {"shortest_edge": 336}, {}),  # 200 times as wide as high: 22 million
        ((4, 800), {"shortest_edge": 336}, {}),
        ((9000, 9000), {"shortest_edge": 336}, {}),
        ((200_000, 400), {"shortest_edge": 336}, {}),
    ],
)
def test_a_picture_that_stays_small(
    shape: tuple[int, int], size: dict[str, int], more: dict[str, object]
) -> None:
    image_processor = processor(size, **more)
    check_processed(Image.new("RGB", shape), image_processor)
    if shape[0] * shape[1] < 10_000_000 and image_processor.do_resize:  # and so it does
        made = image_processor(Image.new("RGB", shape), return_tensors="pt")["pixel_values"]
        assert made.shape == (1, 3, 336, 336)


def test_a_picture_of_which_nothing_would_be_left() -> None:
    image_processor = processor({"shortest_edge": 800, "longest_edge": 1333})
    with pytest.raises(PictureError, match="make 1333 x 0: crop it"):
        check_processed(Image.new("RGB", (30_000, 4)), image_processor)


def test_edges_that_are_areas_bound_themselves() -> None:
    """In Qwen2-VL and its kin, `shortest_edge` and `longest_edge` are numbers of pixels."""
    image_processor = processor({"shortest_edge": 56 * 56, "longest_edge": 12_845_056})
    check_processed(Image.new("RGB", (10_000, 50)), image_processor)


def test_padding_to_a_square_counts() -> None:
    image_processor = LlavaImageProcessorPil(do_pad=True, size={"shortest_edge": 32})
    with pytest.raises(PictureError, match="make 30000 x 30000"):
        check_processed(Image.new("RGB", (30_000, 4)), image_processor)
    check_processed(Image.new("RGB", (4000, 3000)), image_processor)
    check_processed(Image.new("RGB", (9000, 6000)), image_processor)  # not twice what it has


def test_no_question_is_asked_about_a_picture_that_would_be_blown_up() -> None:
    model, demo_processor = load("demo")
    demo_processor.image_processor.size = {"shortest_edge": 192}
    with pytest.raises(PictureError, match="crop it"):
        prepare(model, demo_processor, Image.new("RGB", (30_000, 4)), "describe")
