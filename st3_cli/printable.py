"""Text from outside, made fit to print: nothing in it steers a terminal, and no secret is shown.

File names, URLs, prompts, messages of servers and libraries: whatever is printed comes through
here, at one place, `st3_cli.console`.
"""

from __future__ import annotations

import re

# C0 without tab and newline, DEL, C1, line separators and what turns the direction of writing
# around, and halves of characters. Joiners and marks that texts need stay.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_BYTES = re.compile("[\udc80-\udcff]+")  # as Python carries those that the locale does not know
# Up to the last @ before the path; or after a colon that no port follows, as in u:p#a@host.
_USER = re.compile(r"(?<=://)(?:[^\s/?#]*@|[^\s/?#:@\[]+:(?!\d+\b)\S*@)")
_SECRET = re.compile(
    r"(?<=[?&;#])([\w.~%-]*(?:token|key|sig|secret|pass|credential|auth)[\w.~%-]*=)[^\s&;#\"'<>]+",
    re.IGNORECASE,
)
_NOT_ASCII = re.compile("[^\x00-\x7e]")


def printable(text: str) -> str:
    """Control characters escaped, passwords and tokens in URLs masked; lines stay lines."""
    return _SECRET.sub(r"\1***", _USER.sub("***@", escape(text)))


def one_line(text: str) -> str:
    """The same in one line: names may have line breaks."""
    return printable(text).replace("\n", "\\n")


def escape(text: str) -> str:
    r"""Control characters other than tab and newline as `\x1b`; bytes of a file's name as text.

    What is no UTF-8 becomes `\xff`.
    """
    text = _BYTES.sub(lambda found: _decode(found[0]), text)
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def escape_json(text: str, *, ascii_only: bool = False) -> str:
    r"""The same for JSON, which stays the same document: `\u009b`."""
    odd = _NOT_ASCII if ascii_only else _CONTROLS
    return odd.sub(lambda found: _units(found[0]), text)


def _decode(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _units(letter: str) -> str:
    r"""A character as JSON's `\u`: one for each unit of UTF-16."""
    return re.sub("(....)", r"\\u\1", letter.encode("utf-16-be", "surrogatepass").hex())
