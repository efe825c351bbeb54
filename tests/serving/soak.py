"""A long day of `st3 serve`: many clients at once, bad requests among them, and some who hang up.

    python tests/serving/soak.py [--requests 1000] [--concurrency 32] [--model demo]
                                 [--batch-size 1]

Starts a server of its own, asks it short questions about many pictures, whole and streamed, and
holds against it: every answer is the one of `st3 run`'s code on the same prompt, every bad request
a 400 in one line, every request is counted once, nothing is open in the end, memory does not
grow, and SIGTERM ends it with 0. Prints one JSON document; exit code 1 if anything does not hold.
The demo takes half a second a request on two idle cores.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from typing import Any

from openai import AsyncOpenAI, BadRequestError, RateLimitError
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

import st3
from st3.demo.held_out import held_out
from st3.inference.generation import answer
from st3.methods import make_method

SCENES = 6  # of the demo's world, with a question of every kind about each
TOKENS = 8
BAD = 0.02  # share of requests that are malformed
LEAVING = 0.05  # share whose client hangs up
SAMPLES = 20  # of the memory


def message(picture: Image.Image, question: str) -> dict[str, Any]:
    file = io.BytesIO()
    picture.save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    shown = {"type": "image_url", "image_url": {"url": url}}
    return {"role": "user", "content": [shown, {"type": "text", "text": question}]}


def expected(model: str) -> list[tuple[dict[str, Any], str]]:
    """Messages, and what `st3 run` answers to them."""
    live, processor = st3.load(model, device="cpu")
    method = make_method("st3")
    return [
        (
            message(asked.picture, asked.question.prompt),
            answer(
                live, processor, asked.picture, asked.question.prompt, method, max_new_tokens=TOKENS
            ).text,
        )
        for asked in held_out(SCENES, 0)
    ]


def metrics(port: int) -> dict[tuple[str, ...], float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as reply:
        text = reply.read().decode()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


class Soak:
    """Requests, and what became of them."""

    def __init__(self, port: int, asked: list[tuple[dict[str, Any], str]], seed: int) -> None:
        self.port, self.asked, self.random = port, asked, random.Random(seed)
        self.found: Counter[str] = Counter()
        self.client = AsyncOpenAI(
            base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=600
        )

    async def one(self) -> None:
        """A request of some kind."""
        said, right = self.random.choice(self.asked)
        kind = self.random.random()
        stream = self.random.random() < 0.5
        body = {"model": "soak", "messages": [said], "max_tokens": TOKENS, "stream": stream}
        if kind < BAD:
            await self._bad(body)
        elif kind < BAD + LEAVING:
            await self._leave(body)
        else:
            text = await self._whole(body)
            self.found["right" if text == right else "wrong"] += 1

    async def _whole(self, body: dict[str, Any]) -> str:
        while True:
            try:
                said = await self.client.chat.completions.create(**body)
                if not body["stream"]:
                    return str(said.choices[0].message.content)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in said])
            except RateLimitError:  # not in this soak: the queue is long enough
                self.found["full"] += 1
                await asyncio.sleep(1)

    async def _bad(self, body: dict[str, Any]) -> None:
        wrong: list[dict[str, Any]] = [
            {"extra_body": {"banana": 1}},
            {"model": "another"},
            {"messages": [{"role": "user", "content": "<image> what?"}]},
            {"messages": [{"role": "user"}]},
            {"messages": [message(Image.new("RGB", (300, 1)), "x") | {"role": "tool"}]},
        ]
        try:
            await self.client.chat.completions.create(**(body | self.random.choice(wrong)))
            self.found["taken"] += 1
        except BadRequestError as error:
            line = error.body["message"] if isinstance(error.body, dict) else ""
            self.found["refused" if line and "\n" not in line else "wrong"] += 1

    async def _leave(self, body: dict[str, Any]) -> None:
        """In the middle of the body, while it waits, or while it runs."""
        data = json.dumps(body).encode()
        part = self.random.choice((0.5, 1.0, 1.0))
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: st3\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\n\r\n"
        )
        _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(head.encode() + data[: int(part * len(data))])
        await writer.drain()
        await asyncio.sleep(self.random.random() * 2)
        writer.close()
        self.found["left"] += 1


async def soak(port: int, asked: Any, count: int, concurrency: int) -> dict[str, Any]:
    """All requests; what became of them, and the memory on the way."""
    run, memory, left = Soak(port, asked, seed=0), [], iter(range(count))

    async def client() -> None:
        for number in left:
            await run.one()
            if number % max(1, count // SAMPLES) == 0:
                now = await asyncio.to_thread(metrics, port)
                memory.append(now["process_resident_memory_bytes",])

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(concurrency)))
    await run.client.close()
    return {
        "found": dict(run.found),
        "seconds": time.perf_counter() - began,
        "resident_bytes": memory,
    }


def judge(told: dict[str, Any], after: dict[tuple[str, ...], float], count: int) -> list[str]:
    """What does not hold."""
    found, memory, wrong = told["found"], told["resident_bytes"], []
    if found.get("wrong") or found.get("taken") or found.get("full"):
        wrong.append("an answer differs from st3 run's, or a bad request was taken")
    if sum(found.values()) != count:
        wrong.append("requests were lost")
    server = {name[1]: n for name, n in after.items() if name[0] == "st3_requests_total"}
    if sum(server.values()) != count:
        wrong.append(f"the server counts {server}")
    if server.get("400", 0) != found.get("refused", 0) or server.keys() - {"200", "400", "gone"}:
        wrong.append(f"the server says {server}")
    if after["st3_requests_active",]:
        wrong.append("a request is still open")
    half = memory[len(memory) // 4 : len(memory) // 2]
    if max(memory[-len(half) :]) > 1.05 * max(half):
        wrong.append("memory grows")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--batch-size", type=int, default=1)
    options = parser.parse_args()
    asked = expected(options.model)
    command = [
        sys.executable,
        "-m",
        "st3_cli",
        "serve",
        "--model",
        options.model,
        "--device",
        "cpu",
    ]
    server = subprocess.Popen(
        [
            *command, "--port", "0", "--served-name", "soak", "--json",
            "--batch-size", str(options.batch_size),
        ],
        stdout=subprocess.PIPE, text=True, env=os.environ,
    )  # fmt: skip
    assert server.stdout is not None
    said = ""
    while not said.endswith("}\n"):
        said += server.stdout.readline() or "{}\n"
    port = int(json.loads(said)["url"].rpartition(":")[2].removesuffix("/v1"))
    told = asyncio.run(soak(port, asked, options.requests, options.concurrency))
    for _ in range(100):
        after = metrics(port)
        if not after["st3_requests_active",]:
            break
        time.sleep(0.1)
    told["open_files"] = after["process_open_fds",]
    told["answers"] = len({right for _, right in asked})
    wrong = judge(told, after, options.requests)
    server.send_signal(signal.SIGTERM)
    if server.wait() != 0:
        wrong.append("SIGTERM did not end it with 0")
    print(json.dumps(told | {"wrong": wrong}, indent=2))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
