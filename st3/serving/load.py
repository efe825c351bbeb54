"""Questions to an OpenAI-compatible server, many at a time, timed: whichever server it is.

Answers are streamed, so that the first token has a time of its own. Some requests may be broken,
and some callers may hang up: what becomes of them is counted.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from PIL import Image


@dataclass(frozen=True)
class Ask:
    """One request.

    Attributes:
        body: of `/v1/chat/completions`.
        hang_up: seconds after which the caller goes away; None: it stays.
        broken: whether the server must refuse it.
    """

    body: dict[str, Any]
    hang_up: float | None = None
    broken: bool = False


@dataclass
class Answer:
    """What became of one.

    Attributes:
        status: of HTTP; 0 where there was none, as after hanging up.
        text: as far as it came. `prompt_tokens`: as the server counts them.
        first, total: seconds to the first token, and to the end.
        batch: how many were answered together, where the server is `st3 serve`.
        error: what the server said, or what went wrong on the way.
    """

    status: int = 0
    text: str = ""
    prompt_tokens: int | None = None
    first: float | None = None
    total: float = 0.0
    batch: int | None = None
    error: str = ""


@dataclass
class Load:
    """What became of many.

    Attributes:
        answers: in the order of requests. `seconds`: from the first to the end of the last.
        concurrency: requests at a time.
    """

    concurrency: int
    answers: list[Answer] = field(default_factory=list)
    seconds: float = 0.0

    def figures(self) -> dict[str, Any]:
        """Requests a second, and seconds to the first token and to the end, in the middle and p95.

        Of those that were answered; None where none was.
        """
        good = [one for one in self.answers if one.status == 200 and one.first is not None]
        firsts = sorted(one.first for one in good if one.first is not None)
        totals = sorted(one.total for one in good)
        return {
            "concurrency": self.concurrency,
            "requests": len(self.answers),
            "answered": len(good),
            "seconds": self.seconds,
            "requests_per_second": len(good) / self.seconds if self.seconds else None,
            "ttft_p50_s": _at(firsts, 0.5),
            "ttft_p95_s": _at(firsts, 0.95),
            "total_p50_s": _at(totals, 0.5),
            "total_p95_s": _at(totals, 0.95),
        }


def _at(values: Sequence[float], share: float) -> float | None:
    return values[min(len(values) - 1, int(share * len(values)))] if values else None


def data_url(picture: Image.Image) -> str:
    """A picture as a PNG in a URL."""
    data = io.BytesIO()
    picture.save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def question(
    model: str, prompt: str, pictures: Sequence[str], max_tokens: int = 64
) -> dict[str, Any]:
    """The body of a request, greedy and streamed.

    Args:
        model: as the server calls it.
        prompt: the question. `pictures`: URLs, before it.
        max_tokens: of the answer, at most.
    """
    content: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": url}} for url in pictures
    ]
    return {
        "model": model,
        "messages": [{"role": "user", "content": [*content, {"type": "text", "text": prompt}]}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def run(url: str, asks: Sequence[Ask], concurrency: int, timeout: float = 600) -> Load:
    """Send requests, so many at a time, and wait for all of them.

    Args:
        url: of the server, such as `http://localhost:8000`.
        asks: sent in this order.
        concurrency: at a time.
        timeout: seconds of silence after which a request counts as lost.
    """
    return asyncio.run(_run(url, asks, concurrency, timeout))


async def _run(url: str, asks: Sequence[Ask], concurrency: int, timeout: float) -> Load:
    load = Load(concurrency, [Answer() for _ in asks])
    gate = asyncio.Semaphore(concurrency)
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=timeout, limits=limits) as client:

        async def one(number: int, ask: Ask) -> None:
            async with gate:
                began = time.perf_counter()
                answer = load.answers[number]
                try:
                    async with asyncio.timeout(ask.hang_up):
                        await _ask(client, ask.body, answer, began)
                except TimeoutError:
                    answer.error = "hung up"
                except httpx.HTTPError as error:
                    answer.error = f"{type(error).__name__}: {error}"
                answer.total = time.perf_counter() - began

        began = time.perf_counter()
        await asyncio.gather(*(one(number, ask) for number, ask in enumerate(asks)))
        load.seconds = time.perf_counter() - began
    return load


async def _ask(
    client: httpx.AsyncClient, body: dict[str, Any], answer: Answer, began: float
) -> None:
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            said = (await response.aread()).decode(errors="replace")
            answer.status, answer.error = response.status_code, said
            return
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line[len("data: ") :])
            if "error" in event:
                answer.error = json.dumps(event["error"])
                return
            for choice in event.get("choices", ()):
                if said := choice.get("delta", {}).get("content"):
                    if answer.first is None:
                        answer.first = time.perf_counter() - began
                    answer.text += said
            if event.get("usage"):
                answer.prompt_tokens = event["usage"]["prompt_tokens"]
                answer.batch = event.get("st3", {}).get("batch")
        answer.status = response.status_code
