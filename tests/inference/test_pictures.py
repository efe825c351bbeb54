"""Pictures are opened as a viewer shows them, and bad ones are named in one line."""

from __future__ import annotations

import http.server
import io
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from st3.inference import pictures
from st3.inference.pictures import PictureError, open_picture

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


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/missing":
            self.send_error(404)
            return
        self.send_response(200)
        self.end_headers()
        if self.path == "/slow":
            for _ in range(40):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.05)
            return
        if self.path == "/big":
            self.wfile.write(b"x" * 30_000)
            return
        buffer = io.BytesIO()
        two_halves().save(buffer, "PNG")
        self.wfile.write(buffer.getvalue())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as running:
        running.daemon_threads = True
        running.block_on_close = False
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_urls(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert close(open_picture(f"{server}/picture").getpixel((4, 10)), RED)
    with pytest.raises(PictureError, match="answers 404"):
        open_picture(f"{server}/missing")
    monkeypatch.setattr(pictures, "MAX_BYTES", 20_000)
    with pytest.raises(PictureError, match="larger than"):
        open_picture(f"{server}/big")
    monkeypatch.setattr(pictures, "TIMEOUT", 0.3)
    with pytest.raises(PictureError, match="did not arrive"):
        open_picture(f"{server}/slow")
    with pytest.raises(PictureError, match="cannot be fetched"):
        open_picture("http://127.0.0.1:9/closed")
    with pytest.raises(PictureError, match="cannot be fetched"):
        open_picture("http://[bad/")
