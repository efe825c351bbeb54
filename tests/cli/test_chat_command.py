"""`st3 chat` from a pipe, and on a terminal with Ctrl-C."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import edit, tiny_checkpoint

from st3 import demo


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture
def say(st3_: Any, monkeypatch: pytest.MonkeyPatch, model: Path) -> Any:
    def run(lines: str, *arguments: object) -> Any:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        return st3_("chat", *arguments, "--model", model, "--max-new-tokens", 4)

    return run


def test_lines_of_a_pipe_are_messages(say: Any) -> None:
    lines = f"how many circles\n/image {demo.PICTURE}\nwhat color is it\n"
    result = say(lines, demo.PICTURE, "--json", "--tau", 50)
    assert result.code == 0
    first, second = [json.loads(line) for line in result.out.splitlines()]
    assert (first["turn"], second["turn"]) == (1, 2)
    assert first["prompt"] == "how many circles"
    assert first["visual_tokens"]["total"] == 64
    assert second["visual_tokens"]["total"] == 128
    assert len(second["visual_tokens"]["kept_per_layer"]) == 6
    assert 0 < second["kv_cache"]["ratio"] < 1
    assert second["context_tokens"] > first["context_tokens"] + 64
    assert second["timing"]["ttft_ms"] > 0


def test_what_is_wrong_is_a_line_and_the_conversation_lives_on(say: Any, tmp_path: Path) -> None:
    junk = tmp_path / "junk.png"
    junk.write_text("no picture", encoding="utf-8")
    lines = (
        f"how many circles\n/image {junk}\n/image {tmp_path / 'none.png'}\n/image\n/dance\n\n"
        "what color is it\n/help\n/forget\nwhere is it\n/quit\nnever\n"
    )
    result = say(lines, "--tau", 50)
    assert result.code == 1  # of a pipe, something went wrong
    said = result.err.splitlines()
    assert [line for line in said if line.startswith("st3: ")] == [
        f"st3: {junk} is not a picture that Pillow can read, nor a video",
        f"st3: there is no file {tmp_path / 'none.png'}",
        "st3: /image needs a path or a URL",
        "st3: there is no /dance; /help lists what there is",
        "st3: the prompt is empty: ask something, e.g. 'What do you see?'",
    ]
    assert sum("KV cache" in line for line in said) == 3
    assert any(line.startswith("/forget") for line in said)
    assert len(result.out.splitlines()) == 3


def test_a_picture_that_is_none_ends_nothing_but_the_start(st3_: Any, tmp_path: Path) -> None:
    result = st3_("chat", tmp_path / "none.png")
    assert result.code == 1
    assert "there is no file" in result.err
    assert len(result.err.splitlines()) == 1


def test_a_message_that_fails_takes_its_picture_along(say: Any) -> None:
    """Else every later one would fail with it."""
    long = "circle " * 5000
    lines = f"how many circles\n/image {demo.PICTURE}\n{long}\nwhat color is it\n"
    result = say(lines, "--json")
    assert result.code == 1
    first, failed, last = [json.loads(line) for line in result.out.splitlines()]
    assert "the model's context is" in failed["error"]
    assert "dropped" in result.err
    assert (first["turn"], last["turn"]) == (1, 2)
    assert last["visual_tokens"]["total"] == 0
    assert {first["end"], last["end"]} <= {"cut", "ended"}


def test_a_picture_is_taken_back(say: Any) -> None:
    lines = f"/image {demo.PICTURE}\n/IMAGE {demo.PICTURE}\n/drop\nhow many\n"
    result = say(lines, "--json")
    assert result.code == 0
    assert json.loads(result.out)["visual_tokens"]["total"] == 0


def test_bytes_that_are_no_text(st3_: Any, monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    lines = io.TextIOWrapper(io.BytesIO(b"caf\xe9\nhow many\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", lines)
    result = st3_("chat", "--model", model, "--max-new-tokens", 4)
    assert result.code == 1
    assert "st3: this line has bytes that are no UTF-8" in result.err
    assert len(result.out.splitlines()) == 1


def test_a_path_as_a_terminal_quotes_it(say: Any, tmp_path: Path) -> None:
    place = tmp_path / "a b.png"
    place.write_bytes(demo.PICTURE.read_bytes())
    escaped = str(place).replace(" ", "\\ ")
    lines = f"/image {place}\n/image '{place}'\n/image {escaped}\nhow many\n"
    assert json.loads(say(lines, "--json").out)["visual_tokens"]["total"] == 3 * 64


def test_nothing_to_read(say: Any) -> None:
    result = say("")
    assert result.code == 0
    assert "no message came" in result.err


def test_the_picture_cannot_come_where_the_messages_do(st3_: Any) -> None:
    result = st3_("chat", "-")
    assert result.code == 2
    assert "standard input is where messages come from" in result.err


def test_nor_a_later_one(say: Any) -> None:
    assert "standard input is where messages come from" in say("/image -\n").err


def test_ctrl_c_stops_an_answer_and_not_the_chat(tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path)
    edit(model, "generation_config.json", "eos_token_id")
    ours, theirs = pty.openpty()
    arguments = ["chat", str(demo.PICTURE), "--model", str(model), "--max-new-tokens", "3000"]
    with subprocess.Popen(
        [sys.executable, "-m", "st3_cli", *arguments], stdin=theirs, stdout=theirs, stderr=theirs,
        start_new_session=True, env=os.environ | {"TERM": "dumb"},
    ) as process:  # fmt: skip
        os.close(theirs)
        try:
            shown = _Terminal(ours)
            shown.until("> ")
            os.write(ours, b"how many circles\n")
            shown.until("circles\r\n")
            shown.until(" ")  # in the middle of an answer of some seconds
            process.send_signal(2)
            shown.until("stopped")
            shown.until("> ")
            time.sleep(0.5)  # readline shows the prompt a moment before it waits
            process.send_signal(2)
            shown.until("leaves")
            os.write(ours, b"/quit\n")
            assert process.wait(30) == 0
        finally:
            process.kill()
            os.close(ours)


class _Terminal:
    """Reads what a terminal shows."""

    def __init__(self, number: int) -> None:
        self.number, self.unread = number, ""

    def until(self, words: str) -> None:
        """Up to some words; a minute of nothing is too long."""
        while words not in self.unread:
            ready, _, _ = select.select([self.number], [], [], 60)
            assert ready, f"no {words!r} in {self.unread!r}"
            self.unread += os.read(self.number, 4096).decode(errors="replace")
        self.unread = self.unread.partition(words)[2]
