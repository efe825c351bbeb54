"""SIGTERM to `st3 serve`: what runs is finished, what waits is refused, and nothing is left."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest
from conftest import edit, tiny_checkpoint
from hypothesis import example, given
from hypothesis import strategies as st
from openai import OpenAI

from st3.serving.http.text import Outlet

TOKENS = 300


@contextmanager
def started(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server of a tiny model that never ends an answer, and its URL, as soon as it is told."""
    model = tiny_checkpoint(folder / "model")
    edit(model, "generation_config.json", eos_token_id=None)
    command = [sys.executable, "-m", "st3_cli", "serve", "--model", str(model), "--port", "0"]
    with subprocess.Popen(
        [*command, "--json", "--served-name", "tiny"], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    ) as server:  # fmt: skip
        assert server.stdout is not None
        said = ""
        while not said.endswith("}\n"):
            said += server.stdout.readline() or "{}\n"
        yield server, json.loads(said)["url"]


def _listens(url: str) -> bool:
    port = int(url.removesuffix("/v1").rpartition(":")[2])
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def test_a_signal_as_soon_as_it_listens(tmp_path: Path) -> None:
    with started(tmp_path) as (server, _):
        server.send_signal(signal.SIGTERM)
        assert server.stderr is not None
        assert (server.stderr.read(), server.wait()) == ("", 0)


@pytest.mark.slow
def test_a_second_ctrl_c_waits_for_nothing(tmp_path: Path) -> None:
    with started(tmp_path) as (server, url):
        message = {"role": "user", "content": "how many"}
        with OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
            stream = client.chat.completions.create(
                model="tiny", messages=[message], max_tokens=1900, stream=True
            )
            next(stream)
            server.send_signal(signal.SIGINT)
            while _listens(url):
                time.sleep(0.02)
            server.send_signal(signal.SIGINT)
            with pytest.raises(Exception, match=r"Connection|closed|incomplete"):
                list(stream)
        assert server.stderr is not None
        assert (server.stderr.read(), server.wait()) == ("st3: interrupted\n", 130)


def test_what_runs_is_finished(tmp_path: Path) -> None:
    with started(tmp_path) as (server, url):
        message = {"role": "user", "content": "how many"}
        with (
            OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client,
            ThreadPoolExecutor(1) as pool,
        ):
            asked = {"model": "tiny", "messages": [message], "max_tokens": TOKENS}
            stream = client.chat.completions.create(
                **asked, stream=True, stream_options={"include_usage": True}
            )
            first = next(stream)
            waits = pool.submit(client.chat.completions.create, **asked)
            while client.get("/../health", cast_to=dict)["requests"] < 2:
                time.sleep(0.02)
            server.send_signal(signal.SIGTERM)
            rest = list(stream)
            with pytest.raises(openai.InternalServerError, match="the server is stopping") as no:
                waits.result()
            assert no.value.status_code == 503
        assert first.choices[0].delta.role == "assistant"
        assert rest[-1].usage.completion_tokens == TOKENS
        assert server.wait() == 0
        assert server.stderr is not None
        assert server.stderr.read() == ""


@given(
    st.lists(st.text("ab \n", max_size=4), max_size=8),
    st.none() | st.text("ab\n", min_size=1, max_size=3),
)
@example(["\n", "a"], "\na")
def test_text_goes_out_up_to_a_stop(pieces: Sequence[str], stop: str | None) -> None:
    sent: list[str] = []
    outlet = Outlet(sent.append, () if stop is None else (stop,))
    for piece in pieces:
        outlet.put(piece)
    outlet.end()
    whole = "".join(pieces)
    before, found, _ = whole.partition(stop) if stop else (whole, "", "")
    assert "".join(sent) == outlet.text == before.strip()
    assert outlet.stopped == bool(found)
    assert all(sent)
