"""Pictures arrive from paths, URLs of every kind and standard input, never too large a one."""

from __future__ import annotations

import base64
import gzip
import http.server
import io
import sys
import threading
import time
import tracemalloc
import urllib.parse
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from st3.inference import sources
from st3.inference.pictures import PictureError, open_picture

RED = (255, 0, 0)


def _picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 20), RED).save(buffer, "PNG")
    return buffer.getvalue()


PICTURE = _picture()
SECRET = "Basic " + base64.b64encode(b"ada:pass/word").decode()


def _deflate(data: bytes, bits: int) -> bytes:
    packer = zlib.compressobj(wbits=bits)
    return packer.compress(data) + packer.flush()


ENCODED = {
    "gzip": ("gzip", gzip.compress(PICTURE)),
    "members": ("x-gzip", gzip.compress(PICTURE[:50]) + gzip.compress(PICTURE[50:])),
    "zlib": ("Deflate", _deflate(PICTURE, zlib.MAX_WBITS)),
    "raw": ("deflate", _deflate(PICTURE, -zlib.MAX_WBITS)),
    "twice": ("deflate, gzip", gzip.compress(_deflate(PICTURE, zlib.MAX_WBITS))),
    "plain": ("identity", PICTURE),
    "bomb": ("gzip", gzip.compress(bytes(3_000_000))),
    "deflated-bomb": ("deflate", _deflate(bytes(3_000_000), zlib.MAX_WBITS)),
    "nested-bomb": ("gzip, gzip", gzip.compress(gzip.compress(bytes(3_000_000)))),
    "cut": ("gzip", gzip.compress(PICTURE)[:-20]),
    "cut-deflate": ("deflate", _deflate(PICTURE, zlib.MAX_WBITS)[:-20]),
    "lie": ("gzip", PICTURE),
    "other": ("br", PICTURE),
}
REDIRECTS = {"ftp": "ftp://127.0.0.1/a.png", "file": "file:///etc/hosts", "here": "/picture"}


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        kind, _, name = self.path.lstrip("/").partition("/")
        if kind == "missing":
            self.send_error(404)
            return
        if kind == "locked" and self.headers.get("Authorization") != SECRET:
            self.send_error(401)
            return
        if kind == "redirect":
            self.send_response(302)
            self.send_header("Location", REDIRECTS[name])
            self.end_headers()
            return
        self.send_response(200)
        data = PICTURE
        if kind == "encoded":
            encoding, data = ENCODED[name]
            self.send_header("Content-Encoding", encoding)
        self.end_headers()
        if kind == "slow":
            for _ in range(40):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.05)
        self.wfile.write(b"x" * 30_000 if kind == "big" else data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    """Its address, without the scheme."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as running:
        running.daemon_threads = True
        running.block_on_close = False
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{running.server_port}"
        running.shutdown()


def is_ours(image: Image.Image) -> bool:
    return image.size == (40, 20) and image.getpixel((4, 10)) == RED


def test_urls(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_ours(open_picture(f"http://{server}/picture"))
    assert is_ours(open_picture(f"HTTP://{server}/picture"))
    assert is_ours(open_picture(f"http://{server}/a picture, über?q=a b#part"))
    assert is_ours(open_picture(f"http://{server}/redirect/here"))
    with pytest.raises(PictureError, match="answers 404"):
        open_picture(f"Http://{server}/missing")
    monkeypatch.setattr(sources, "MAX_BYTES", 20_000)
    with pytest.raises(PictureError, match="larger than"):
        open_picture(f"http://{server}/big")
    monkeypatch.setattr(sources, "TIMEOUT", 0.3)
    with pytest.raises(PictureError, match="did not arrive"):
        open_picture(f"http://{server}/slow")


def test_a_user_and_a_password_in_a_url(server: str) -> None:
    assert is_ours(open_picture(f"http://ada:pass%2Fword@{server}/locked"))
    with pytest.raises(PictureError, match="answers 401"):
        open_picture(f"http://ada@{server}/locked")


@pytest.mark.parametrize("name", ["gzip", "members", "zlib", "raw", "twice", "plain"])
def test_encoded_answers(server: str, name: str) -> None:
    assert is_ours(open_picture(f"http://{server}/encoded/{name}"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bomb", "larger than 1 MB"),
        ("deflated-bomb", "larger than 1 MB"),
        ("nested-bomb", "larger than 1 MB"),
        ("cut", "arrived damaged"),
        ("cut-deflate", "arrived damaged"),
        ("lie", "arrived damaged"),
        ("other", "encoding br"),
    ],
)
def test_encodings_that_do_not_work(
    server: str, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.setattr(sources, "MAX_BYTES", 1_000_000)
    with pytest.raises(PictureError, match=message):
        open_picture(f"http://{server}/encoded/{name}")


@pytest.mark.parametrize("name", ["ftp", "file"])
def test_no_redirect_leaves_the_web(server: str, name: str) -> None:
    with pytest.raises(PictureError, match=f"(it redirects to|url) '?{name}:"):
        open_picture(f"http://{server}/redirect/{name}")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1:9/closed", "cannot be fetched"),
        ("http://[bad/", "no valid URL"),
        ("http://ada:half#secret@127.0.0.1/", "no valid URL"),
        ("http:picture.png", "names no server"),
        ("ftp://127.0.0.1/a.png", "download it and give its path"),
        ("FTP://127.0.0.1/a.png", "download it and give its path"),
        ("s3://bucket/a.png", "download it and give its path"),
        ("file://elsewhere/a.png", "another machine"),
        ("file:///nowhere/a.png", "no file /nowhere/a.png"),
        ("data:image/png;base64", "no comma"),
        ("data:image/png;base64,a.b", "no base64"),
        ("data:image/png;base64,", "is empty"),
        ("data:text/plain,hello", "is not a picture"),
        ("what: a picture?", "no file what: a picture"),
    ],
)
def test_urls_that_do_not_work(url: str, message: str) -> None:
    with pytest.raises(PictureError, match=message) as caught:
        open_picture(url)
    assert "\n" not in str(caught.value)


def test_urls_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a pictüre, 50%.png"
    path.write_bytes(PICTURE)
    assert is_ours(open_picture(path.as_uri()))
    assert is_ours(open_picture(path.as_uri().replace("file://", "FILE:")))
    assert is_ours(open_picture(path.as_uri().replace("file://", "file://localhost")))
    monkeypatch.setattr(sources, "MAX_BYTES", 20)
    with pytest.raises(PictureError, match="larger than"):
        open_picture(path.as_uri())


def test_a_colon_in_the_name_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("shapes:1.png", "data:1.png"):
        Path(name).write_bytes(PICTURE)
    assert is_ours(open_picture("shapes:1.png"))
    assert is_ours(open_picture(Path("data:1.png")))
    assert is_ours(open_picture("./data:1.png"))


def test_data_urls(monkeypatch: pytest.MonkeyPatch) -> None:
    word = base64.b64encode(PICTURE).decode()
    assert is_ours(open_picture(f"data:image/png;base64,{word}"))
    assert is_ours(open_picture(f"DATA:;BASE64,{urllib.parse.quote(word)}"))
    assert is_ours(open_picture(f"data:,{urllib.parse.quote_from_bytes(PICTURE)}"))
    monkeypatch.setattr(sources, "MAX_BYTES", 20)
    for url in (f"data:;base64,{word[:40]}", "data:," + "a" * 1000):
        with pytest.raises(PictureError, match="the data: URL is larger than"):
            open_picture(url)


def test_a_data_url_takes_little_more_memory_than_it_has() -> None:
    """Two copies of it at a time at most, with spaces or without."""
    data = bytes(3_000_000)
    plain = "data:image/png;base64," + base64.b64encode(data).decode()
    for url in (plain, plain.replace("A", " A\n", 1)):
        tracemalloc.start()
        try:
            read, _ = sources.read_url(url)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert read == data
        assert peak < 2.6 * len(url)


def test_standard_input_that_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(PictureError, match="standard input is closed"):
        open_picture("-")
