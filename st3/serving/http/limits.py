"""What a server takes of its clients, and how it says no."""

from __future__ import annotations

from dataclasses import dataclass

from st3.inference.pictures import MAX_PIXELS
from st3.inference.sources import MAX_BYTES


@dataclass(frozen=True)
class Limits:
    """What holds for every request.

    Attributes:
        queue: requests that wait, besides those that run.
        seconds: from a request's arrival to its last token.
        body: bytes; by default one picture of `MAX_BYTES` in base64, and words.
        waiting: bytes of all requests together; one that is alone is bounded by `body`.
        pictures: of a request.
        pixels: of all of them together.
        new_tokens: of an answer, whatever a request asks for.
        hosts: from which pictures are fetched, see `st3.inference.sources.read_url`.
    """

    queue: int = 64
    seconds: float = 300.0
    body: int = MAX_BYTES * 4 // 3 + 1_000_000
    waiting: int = 1_000_000_000
    pictures: int = 16
    pixels: int = MAX_PIXELS
    new_tokens: int = 1024
    hosts: frozenset[str] = frozenset()


class Refusal(Exception):
    """A request is not answered.

    Attributes:
        status: of HTTP.
        line: what is wrong, and how to mend it.
        code: in a word, for programs.
    """

    def __init__(self, status: int, line: str, code: str) -> None:
        super().__init__(line)
        self.status, self.line, self.code = status, " ".join(line.split())[:_LONGEST], code


_LONGEST = 400  # characters of a line: some errors quote what they were given


def invalid(line: str) -> Refusal:
    """What was asked makes no sense."""
    return Refusal(400, line, "invalid_request")
