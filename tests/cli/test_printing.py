"""What comes from outside is printed as text: it steers no terminal and shows no secret."""

from __future__ import annotations

import http.server
import io
import json
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from st3 import demo
from st3_cli import console
from st3_cli.printable import escape, escape_json, one_line, printable

CONTROLS = [*map(chr, range(32)), "\x7f", *map(chr, range(0x80, 0xA0)), "\u2028", "\u2029"]
CONTROLS += [*map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("over\rwritten\b", r"over\rwritten\x08"),
        ("a\u202egnp.exe", r"a\u202egnp.exe"),
        ("\x9b2J\x85", r"\x9b2J\x85"),
        ("one\n\ttwo", "one\n\ttwo"),
        ("wie heißt 猫, 👩‍🚀?", "wie heißt 猫, 👩‍🚀?"),
        ("\udcc3\udcbc and \udcff", r"ü and \xff"),  # bytes that the locale did not know
        ("\udcc2\udc9b2J", r"\x9b2J"),  # and what they hide
        ("\ud800", r"\ud800"),
    ],
)
def test_control_characters(text: str, shown: str) -> None:
    assert escape(text) == shown


@given(st.text(st.one_of(st.characters(), st.sampled_from(CONTROLS))))
def test_whatever_is_printed_is_one_line_without_controls(text: str) -> None:
    shown = one_line(text)
    assert not set(shown) & (set(CONTROLS) - {"\t"})
    shown.encode()


@given(st.text(st.one_of(st.characters(), st.sampled_from(CONTROLS))), st.booleans())
def test_json_stays_the_same_document(text: str, ascii_only: bool) -> None:
    shown = escape_json(json.dumps({text: text}, ensure_ascii=False), ascii_only=ascii_only)
    assert json.loads(shown) == {text: text}
    assert not set(shown) & set(CONTROLS) - {"\x7f" if ascii_only else ""}
    shown.encode("ascii" if ascii_only else "utf-8")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://ada:pa55@host/a.png", "http://***@host/a.png"),
        ("at https://TOKEN@host/ now", "at https://***@host/ now"),
        ("http://ada:p@ss@host/a@b", "http://***@host/a@b"),
        ("http://ada:p#a/ss@host/a", "http://***@host/a"),
        ("http://host:8080/a@2x.png", "http://host:8080/a@2x.png"),
        ("http://[::1]:80/a@b", "http://[::1]:80/a@b"),
        ("http://h/?token=a1&x=2", "http://h/?token=***&x=2"),
        ("http://h/?x=2&API_KEY=a1#f", "http://h/?x=2&API_KEY=***#f"),
        ("http://h/?X-Amz-Signature=0af&X-Amz-Credential=b%2F", None),
        ("http://h/?sv=1&sig=a%3D", "http://h/?sv=1&sig=***"),
        ("http://h/#access_token=a1", "http://h/#access_token=***"),
        ("http://h/?size=3&page=token", "http://h/?size=3&page=token"),
        ("a: b@c, key=3", "a: b@c, key=3"),
    ],
)
def test_secrets(text: str, shown: str | None) -> None:
    expected = shown or "http://h/?X-Amz-Signature=***&X-Amz-Credential=***"
    assert printable(text) == expected


HOSTILE = "\x1b]0;owned\x07\r\b[bold red]x[/bold red] :cat: \u202egnp"
SHOWN = r"\x1b]0;owned\x07\r\x08[bold red]x[/bold red] :cat: \u202egnp"


def test_tables_and_lines_beside_them(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_texts((HOSTILE, [HOSTILE, "b"], [(HOSTILE, "[/]")]))
    console.aside(f"wrote {HOSTILE}\n")
    console.err.print(f"{HOSTILE} http://a:b@c")
    console.say(HOSTILE)
    caught = capsys.readouterr()
    words = [word for line in caught.out.splitlines() for word in line.split()]
    assert "[/]" in words
    # A table may break a text, but it loses nothing of it.
    assert "".join(words).count("[boldred]x[/boldred]:cat:") >= 1
    lines = caught.err.splitlines()
    assert lines == [rf"wrote {SHOWN}\n", f"{SHOWN} http://***@c", f"st3: {SHOWN}"]
    assert not set(caught.out + caught.err) & (set(CONTROLS) - {"\n"})


class _Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_an_answer_steers_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, shown in ((_Terminal(), "a\\x1b[2J\n\tb"), (io.StringIO(), "a\x1b[2J\n\tb")):
        monkeypatch.setattr(sys, "stdout", stream)
        for piece in ("a\x1b", "[2J\n", "\tb"):
            console.print_answer(piece)
        assert stream.getvalue() == shown


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_json_in_the_letters_of_stdout(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    data = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(data, encoding=encoding, newline=""))
    document = {"answer": "heißt 猫 👩‍🚀 \x9b \udcff"}
    console.print_json(document)
    sys.stdout.flush()
    assert json.loads(data.getvalue().decode(encoding)) == document
    assert ("猫".encode() in data.getvalue()) == (encoding == "utf-8")


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", HOSTILE],
        ["run", f"{HOSTILE}\n.png", "How many?"],
        ["run", "--model", f"./{HOSTILE}"],
        ["run", "--model", HOSTILE],
        ["run", "--method", HOSTILE],
        ["run", f"--{HOSTILE}"],
        ["run", "--device", HOSTILE],
        ["run", "--settings", HOSTILE],
        ["run", "--show-kept", f"{HOSTILE}\n/a.png"],
        ["profile", "--config", HOSTILE],
        ["sweep", "--images", f"./{HOSTILE}", "--prompt", "a"],
        [HOSTILE],
    ],
)
@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_names_in_messages(st3_: Any, arguments: list[str], debug: list[str]) -> None:
    result = st3_(*arguments, *(debug if len(arguments) > 1 else []))
    assert result.code in {1, 2}
    last = result.err.splitlines()[-1]
    assert last.startswith("st3: ")
    assert "[bold red]x[/bold red] " in last
    assert not set(result.err) & (set(CONTROLS) - {"\n", "\t"})
    if not debug:
        assert len(result.err.splitlines()) == 1


class _Rude(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.wfile.write(b"HTTP/1.1 403 No \x1b[31m\x9b\x08way\r\n\r\n")

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_what_a_server_says(st3_: Any) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), _Rude) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        place = f"127.0.0.1:{server.server_port}/a.png"
        result = st3_("run", f"http://ada:secret@{place}?token=abc&b=1")
    assert result.err == (
        f"st3: http://***@{place}?token=***&b=1 answers 403 " + r"No \x1b[31m\x9b\x08way" + "\n"
    )


def test_the_name_of_a_picture_is_the_name_of_the_file(st3_: Any, tmp_path: Path) -> None:
    path = tmp_path / "kept [red]:cat:[a][b] ünï.png"
    result = st3_("run", demo.PICTURE, "hello", "--max-new-tokens", 1, "--show-kept", path)
    assert result.err.splitlines()[-1] == f"wrote {path}"
    assert path.exists()
