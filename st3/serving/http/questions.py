"""From a request to what a model is asked: its pictures as bytes, looked at and not yet decoded.

A request may wait for a while, and a picture takes a hundred times its bytes once it is decoded: so
that is left to its turn. What is no picture, or claims to be too large, is refused here.
"""

from __future__ import annotations

import threading
from contextlib import nullcontext
from dataclasses import dataclass

from PIL import Image

from st3.inference.generation import sampling
from st3.inference.pictures import decode_picture, measure_picture
from st3.inference.sources import PictureError, read_url
from st3.inference.transcript import Turn
from st3.serving.http.limits import Limits, invalid
from st3.serving.http.requests import ChatRequest, Message, Text

_unpacking = threading.Lock()
"""One at a time: each holds three times its size meanwhile, and Python would do no two at once."""


@dataclass(frozen=True)
class Question:
    """What a model is asked, and how.

    Attributes:
        turns: the conversation; the last is to be answered.
        pictures: of all of them in order: bytes, and what to call them.
        tokens: of the answer, at most.
        temperature, top_p, seed: of sampling, see `st3.inference.generation.sampling`.
        stops: texts before which the answer ends.
    """

    turns: tuple[Turn, ...]
    pictures: tuple[tuple[bytes, str], ...]
    tokens: int
    temperature: float
    top_p: float | None
    seed: int
    stops: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Of its pictures and words."""
        words = sum(len(part or "") for turn in self.turns for part in turn.parts)
        return words + sum(len(data) for data, _ in self.pictures)

    @property
    def greedy(self) -> bool:
        """Whether nothing is drawn."""
        return not sampling(self.temperature)

    def decoded(self) -> list[Image.Image]:
        """The pictures, upright, in RGB.

        Raises:
            PictureError: one of them is damaged.
        """
        return [decode_picture(data, name) for data, name in self.pictures]


def read_question(request: ChatRequest, limits: Limits, seed: int = 0) -> Question:
    """What a request asks; fetches what is to be fetched, so it may take a while.

    Args:
        request: as it came.
        limits: of the server.
        seed: where the request has none.

    Raises:
        Refusal: too many pictures, or one that cannot be used; or messages that end in no question.
    """
    last = request.messages[-1]
    if last.role != "user":
        raise invalid(f"the last message is of the role {last.role}: end with the user's question")
    if not any(not isinstance(part, Text) or part.text.strip() for part in last.content):
        raise invalid("the last message is empty: ask something")
    urls = [
        part.image_url.url
        for message in request.messages
        for part in message.content
        if not isinstance(part, Text)
    ]
    if len(urls) > limits.pictures:
        raise invalid(f"{len(urls)} pictures are more than {limits.pictures}: show fewer")
    return Question(
        turns=tuple(_turn(message) for message in request.messages),
        pictures=_pictures(urls, limits),
        tokens=min(request.tokens or limits.new_tokens, limits.new_tokens),
        temperature=request.temperature or 0.0,
        top_p=request.top_p,
        seed=seed if request.seed is None else request.seed,
        stops=tuple(request.stop or ()),
    )


def _turn(message: Message) -> Turn:
    role = "system" if message.role == "developer" else message.role
    return Turn(role, tuple(p.text if isinstance(p, Text) else None for p in message.content))


def _pictures(urls: list[str], limits: Limits) -> tuple[tuple[bytes, str], ...]:
    found, pixels = [], 0
    for number, url in enumerate(urls, start=1):
        which = f"picture {number}: " if len(urls) > 1 else ""
        try:
            with _unpacking if url[:5].lower() == "data:" else nullcontext():
                data, name = read_url(url, limits.hosts)
            width, height = measure_picture(data, name)
        except PictureError as error:
            raise invalid(f"{which}{error}") from None
        pixels += width * height
        if pixels > limits.pixels:
            raise invalid(
                f"{which}more than {limits.pixels / 1e6:g} million pixels in one request: scale "
                "pictures down"
            )
        found.append((data, f"{which}{name}"))
    return tuple(found)
