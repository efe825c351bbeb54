"""A vLLM server of one's own, started for a measurement and ended behind it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

NAME = "served"
"""What the server calls its model."""


@dataclass(frozen=True)
class Server:
    """One that answers.

    Attributes:
        url: where. `log`: what it printed.
    """

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def memory(self) -> int:
        """Bytes that its processes hold, memory that they share counted once for each."""
        main = psutil.Process(self.process.pid)
        return sum(one.memory_info().rss for one in (main, *main.children(recursive=True)))

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self.process.poll() is None

    def forget(self) -> None:
        """Empty its prefix cache and the encoder's, so that what is asked next is asked anew."""
        for what in ("prefix", "mm", "encoder"):
            response = httpx.post(f"{self.url}/reset_{what}_cache", timeout=60)
            if what == "prefix":
                response.raise_for_status()


@contextmanager
def served(
    model: str, settings: Mapping[str, Any] | None, more: Sequence[str] = (), wait: float = 900
) -> Iterator[Server]:
    """A server while the `with` lasts.

    Args:
        model: a folder, or a Hub id.
        settings: as `--hf-overrides` has them below `st3`; None leaves pictures whole.
        more: further options of vLLM's.
        wait: seconds for it to start.

    Raises:
        ValueError: it did not start; with the last line that it printed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # `vllm serve` looks for a package of that name, which its CPU build is not.
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model,
        "--host", "127.0.0.1", "--port", str(port), "--served-model-name", NAME, *more,
    ]  # fmt: skip
    if settings is not None:
        command += ["--hf-overrides", json.dumps({"st3": dict(settings)})]
    environment = os.environ | {"VLLM_SERVER_DEV_MODE": "1"}  # caches can be emptied
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, stdout=out, stderr=out, env=environment, start_new_session=True
            )
        server = Server(f"http://127.0.0.1:{port}", process, log)
        try:
            _wait(server, wait)
            yield server
        finally:
            _end(process)


def _wait(server: Server, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not server.alive:
            lines = server.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise ValueError(f"vLLM did not start: {lines[-1] if lines else 'it said nothing'}")
        try:
            if httpx.get(f"{server.url}/health", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise ValueError(f"vLLM did not start within {seconds:.0f} s: see its log")


def _end(process: subprocess.Popen[bytes]) -> None:
    """It and all that it started: their session is its own."""
    process.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(30)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
