"""Videos that the tests write: a grey says which frame is which, and their times are known."""

from __future__ import annotations

import builtins
import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from st3.inference import videos
from st3.inference.pictures import PictureError
from st3.inference.video_files import open_visual
from st3.inference.videos import Clip, Video, VideoError, spread

STEP = 4  # of grey from frame to frame


def still(number: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    return Image.new("RGB", size, (number * STEP,) * 3)


def film(path: Path, times: Sequence[float], codec: str = "mpeg4", **more: Any) -> Path:
    """One frame at each of these times, in seconds; a key frame every twelve."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=100)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.gop_size, stream.bit_rate = 12, 8_000_000
        stream.codec_context.time_base = Fraction(1, 100)
        for name, value in more.items():
            setattr(stream.codec_context, name, value)
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_image(still(number))
            frame.pts, frame.time_base = round(100 * time), Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def numbers(clip: Clip) -> list[int]:
    """Which frames these are, by their grey."""
    return [round(float(np.asarray(frame).mean()) / STEP) for frame in clip.frames]


def opened(source: Any) -> Video:
    found = open_visual(source)
    assert isinstance(found, Video)
    return found


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.mov"])
def test_frames_of_a_film(tmp_path: Path, name: str) -> None:
    video = opened(film(tmp_path / name, [n / 10 for n in range(60)]))
    assert (video.total, video.size, video.timed) == (60, (64, 48), True)
    assert video.fps == pytest.approx(10)
    wanted = [0, 3, 17, 18, 41, 59]
    clip = video.take(wanted)
    assert numbers(clip) == wanted
    assert clip.seconds == pytest.approx([n / 10 for n in wanted])
    assert (clip.indices, clip.total) == (tuple(wanted), 60)
    assert numbers(video.take([5, 5, 6])) == [5, 5, 6]


def test_frames_between_others(tmp_path: Path) -> None:
    """Frames that need later ones are stored behind them."""
    path = film(tmp_path / "b.mkv", [n / 10 for n in range(50)], max_b_frames=3)
    assert numbers(opened(path).take(range(50))) == list(range(50))


def test_a_bare_stream_is_timed_by_its_rate(tmp_path: Path) -> None:
    path = film(tmp_path / "b.h264", [n / 100 for n in range(40)], "libx264")
    video = opened(path)
    assert video.seconds == pytest.approx([n / video.fps for n in range(40)])
    assert numbers(video.take([0, 1, 20, 39])) == [0, 1, 20, 39]


def test_a_stream_whose_index_misleads(tmp_path: Path) -> None:
    """A transport stream has none: what is looked for by time is found from the beginning."""
    video = opened(film(tmp_path / "b.ts", [n / 10 for n in range(60)], "libx264"))
    assert numbers(video.take([0, 30, 59])) == [0, 30, 59]
    assert video.fps == pytest.approx(10)


def test_frames_at_uneven_times(tmp_path: Path) -> None:
    times = [0, 0.1, 0.5, 0.6, 2.0, 2.1, 3.0]
    video = opened(film(tmp_path / "uneven.mkv", times))
    assert video.seconds == pytest.approx(times)
    assert video.fps == pytest.approx(2)  # six steps in three seconds
    assert video.every(1) == [0, 3, 4, 6]  # on show at 0, 1, 2 and 3 s
    assert video.every(100) == list(range(7))


def test_bytes_are_a_film_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = film(tmp_path / "c.mp4", [n / 10 for n in range(20)])

    class Pipe:
        buffer = io.BytesIO(path.read_bytes())

    monkeypatch.setattr("sys.stdin", Pipe)
    assert numbers(opened("-").take([2, 19])) == [2, 19]
    assert numbers(opened(path.as_uri()).take([7])) == [7]


def test_a_turned_film_is_upright(tmp_path: Path) -> None:
    """A phone stores the picture as it is held, and a matrix that turns it: here a quarter."""
    path = film(tmp_path / "turned.mp4", [0, 0.1])
    one, ends = b"\x00\x01\x00\x00", b"\x40\x00\x00\x00"
    none, minus = bytes(4), b"\xff\xff\x00\x00"
    plain = one + none * 3 + one + none * 3 + ends
    head, movie, rest = path.read_bytes().rpartition(plain)  # the last one is the track's
    assert movie
    path.write_bytes(head + none + one + none + minus + none * 4 + ends + rest)
    assert opened(path).size == (48, 64)


def test_what_is_no_film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = film(tmp_path / "d.mp4", [n / 10 for n in range(20)])
    whole = path.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(VideoError, match=r"cut.mp4 is no video that PyAV can decode: "):
        open_visual(tmp_path / "cut.mp4")
    (tmp_path / "e.mp4").write_bytes(b"nothing of the kind")
    with pytest.raises(VideoError, match=r"e.mp4 is no video that PyAV can decode: Invalid data"):
        open_visual(tmp_path / "e.mp4")
    begun, at = film(tmp_path / "f.avi", [n / 10 for n in range(40)]).read_bytes(), 9000
    (tmp_path / "g.avi").write_bytes(begun[:at])
    video = opened(tmp_path / "g.avi")
    assert numbers(video.take([0, 2])) == [0, 2]
    assert video.total < 40


def test_without_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *how: Any) -> Any:
        if name == "av":
            raise ImportError(name)
        return real(name, *how)

    monkeypatch.setattr(builtins, "__import__", without)
    path = tmp_path / "a.bin"
    path.write_bytes(b"\x00\x00\x00\x20ftypisom and more")
    with pytest.raises(VideoError, match=r"a.bin is a video, .* pip install 'st3\[video\]'$"):
        open_visual(path)
    (tmp_path / "notes.txt").write_text("neither", encoding="utf-8")
    with pytest.raises(PictureError, match=r"notes.txt is not a picture .* nor a video$"):
        open_visual(tmp_path / "notes.txt")


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_animations(tmp_path: Path, kind: str) -> None:
    lasting = [100, 200, 100, 400, 100, 300]
    first, *others = [still(number) for number in range(6)]
    how = {"lossless": True} if kind == "webp" else {}
    path = tmp_path / f"a.{kind}"
    first.save(path, save_all=True, append_images=others, duration=lasting, **how)
    video = opened(path)
    assert video.seconds == pytest.approx([0, 0.1, 0.3, 0.4, 0.8, 0.9])
    assert video.fps == pytest.approx(6 / 1.2)
    assert numbers(video.take([1, 2, 5])) == [1, 2, 5]
    assert video.every(2) == [0, 3]  # at 0 and 0.5 s
    first.save(path)
    assert isinstance(open_visual(path), Image.Image)


def test_a_damaged_animation(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (4, 90, 90, 3), dtype=np.uint8)
    first, *others = map(Image.fromarray, noise)
    first.save(tmp_path / "a.gif", save_all=True, append_images=others)
    data = (tmp_path / "a.gif").read_bytes()
    (tmp_path / "a.gif").write_bytes(data[:-4000])
    with pytest.raises(VideoError, match=r"a.gif is a damaged animation: "):
        open_visual(tmp_path / "a.gif")


def test_a_folder_counts_as_people_do(tmp_path: Path) -> None:
    for number in (2, 10, 1, 33):
        still(number).save(tmp_path / f"Frame{number}.{'jpg' if number == 2 else 'png'}")
    (tmp_path / "readme.txt").write_text("no frame", encoding="utf-8")
    (tmp_path / "._Frame1.png").write_bytes(b"of a Mac")
    video = opened(tmp_path)
    assert numbers(video.take(range(video.total))) == [1, 2, 10, 33]
    assert (video.fps, video.seconds) == (2.0, (0.0, 0.5, 1.0, 1.5))
    with pytest.raises(VideoError, match="has no times, so --fps says nothing: give --frames"):
        video.every(1)
    still(4, (48, 64)).save(tmp_path / "frame34.png")
    with pytest.raises(VideoError, match=r"64 x 48 pixels, frame34.png 48 x 64; "):
        opened(tmp_path).take(range(5))
    (tmp_path / "frame34.png").write_bytes(b"damaged")
    with pytest.raises(PictureError, match=r"frame34.png is not a picture"):
        opened(tmp_path).take(range(5))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(VideoError, match="empty is a folder without frames"):
        open_visual(empty)


def test_which_frames() -> None:
    assert spread(10, 4) == [0, 2, 5, 7]  # the first of 2.5 each
    assert spread(7, 7) == list(range(7))
    video = Video("v", tuple(n / 30 for n in range(90)), 30.0, (4, 4), True, lambda _: iter(()))
    assert video.evenly(3) == [0, 30, 60]
    with pytest.raises(VideoError, match="v has 90 frames, not 91: give --frames 90 at most"):
        video.evenly(91)
    assert video.every(2) == [0, 15, 30, 45, 60, 75]
    assert video.every(10) == list(range(0, 90, 3))
    assert video.every(7.5) == list(range(0, 90, 4))
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(VideoError, match="give a number above 0"):
            video.every(wrong)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(videos, "MAX_BYTES", 3 * 16 * 5 + 1)
    asked: list[int] = []

    def decode(indices: Sequence[int]) -> Any:
        for index in indices:
            asked.append(index)
            yield still(index, (4, 4))

    video = Video("v", tuple(map(float, range(90))), 1.0, (4, 4), True, decode)
    with pytest.raises(VideoError, match=r"6 frames of 4 x 4 pixels .* give --frames 5 at most"):
        video.take(range(6))
    assert not asked
    told: list[tuple[int, int]] = []
    assert len(video.take(range(5), lambda *done: told.append(done)).frames) == 5
    assert told == [(n, 5) for n in range(1, 6)]
