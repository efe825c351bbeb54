"""A server in this process, on any free port, and what asks it without a client's library."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from conftest import tiny_checkpoint
from openai import OpenAI
from PIL import Image

import st3
from st3.methods import make_method
from st3.serving.http.app import build_app
from st3.serving.http.chat import Chat
from st3.serving.http.limits import Limits
from st3.serving.http.metrics import Metrics
from st3.serving.http.server import Server, bind
from st3.serving.http.worker import Worker

PATH = "/v1/chat/completions"


@dataclass(frozen=True)
class Served:
    """A server that runs."""

    chat: Chat
    port: int
    client: OpenAI

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def sent(self, body: dict[str, Any], part: float = 1.0) -> socket.socket:
        """A connection over which a request went out, or a part of it."""
        data = json.dumps(body).encode()
        head = (
            f"POST {PATH} HTTP/1.1\r\nHost: st3\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\n\r\n"
        )
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        connection.sendall(head.encode() + data[: int(part * len(data))])
        return connection

    def ended(self, status: str) -> float:
        """Requests that ended so."""
        name = "st3_requests_total"
        return self.chat.metrics.registry.get_sample_value(name, {"status": status}) or 0.0


@contextmanager
def serving(
    live: Any, processor: Any, limits: Limits | None = None, also: Sequence[str] = (),
    key: str | None = None, **more: Any,
) -> Iterator[Served]:  # fmt: skip
    """Serve a model as `tiny` until the context ends; all that runs then is answered."""
    worker = Worker(live, processor, **more)
    methods = {"tiny": make_method("st3")} | {f"tiny:{one}": make_method(one) for one in also}
    chat = Chat(worker, methods, limits or Limits(), Metrics())
    bound = bind("127.0.0.1", 0)
    server = Server(build_app(chat, key), worker)
    thread = threading.Thread(target=server.serve_on, args=(bound,))
    thread.start()
    until(lambda: server.started)
    port = bound.getsockname()[1]
    try:
        with OpenAI(
            base_url=f"http://127.0.0.1:{port}/v1", api_key=key or "none", max_retries=0, timeout=60
        ) as client:
            yield Served(chat, port, client)
    finally:
        server.should_exit = True
        thread.join()


def until(true: Callable[[], Any]) -> None:
    """Wait for it."""
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


def endless(folder: Path) -> tuple[Any, Any]:
    """A tiny model that never ends an answer by itself."""
    live, processor = st3.load(str(tiny_checkpoint(folder)), device="cpu")
    live.generation_config.eos_token_id = None
    return live, processor


def ask(served: Served, *messages: dict[str, Any], **more: Any) -> Any:
    """A completion, or the chunks of a stream."""
    said = served.client.chat.completions.create(
        **({"model": "tiny", "messages": list(messages)} | more)
    )
    if not more.get("stream"):
        return said
    with said:
        return list(said)


def noise(seed: int, size: int = 32) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def data_url(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def cut() -> str:
    """A picture that lacks its end."""
    file = io.BytesIO()
    noise(0, 200).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()[:5000]).decode()}"


def user(text: str, *pictures: str) -> dict[str, Any]:
    """A message about pictures, by their URLs."""
    shown = [{"type": "image_url", "image_url": {"url": url}} for url in pictures]
    return {"role": "user", "content": [*shown, {"type": "text", "text": text}]}


def body(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": list(messages)} | more
