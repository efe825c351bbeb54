"""Requests that waited together are a batch of `st3 serve`, and none of them notices."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import openai
import pytest
from served import Served, ask, body, cut, data_url, endless, noise, serving, until, user

from st3.engine import trim as engine
from st3.inference.generation import answer
from st3.methods import make_method
from st3.serving.http import answering

Request = tuple[dict[str, Any], dict[str, Any]]  # a message, and what else is asked for


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return endless(tmp_path_factory.mktemp("tiny"))


@contextmanager
def busy(served: Served, live: Any) -> Iterator[None]:
    """The model answers somebody else meanwhile."""
    begun, go = threading.Event(), threading.Event()

    def wait(*_: Any) -> None:
        begun.set()
        go.wait(60)

    hook = live.lm_head.register_forward_hook(wait)
    with served.sent(body(user("wait"), max_tokens=2)) as connection:
        assert begun.wait(60)
        hook.remove()
        try:
            yield
        finally:
            go.set()
            assert connection.recv(9).startswith(b"HTTP/1.1 ")


def together(served: Served, live: Any, asked: Sequence[Request]) -> list[Any]:
    """Replies, or errors, to requests that all wait when the model becomes free."""
    with ThreadPoolExecutor(len(asked)) as pool:
        with busy(served, live):
            futures = [pool.submit(ask, served, message, **more) for message, more in asked]
            until(lambda: len(served.chat.worker._line._jobs) == len(asked))
        return [future.exception() or future.result() for future in futures]


def said(reply: Any) -> tuple[Any, ...]:
    """Text, why it ended, and tokens of the prompt; of a completion or a stream."""
    counts = end(reply).usage.prompt_tokens, end(reply).usage.kept_prompt_tokens
    if not isinstance(reply, list):
        one = reply.choices[0]
        return one.message.content, one.finish_reason, *counts
    chunks = [chunk for chunk in reply if chunk.choices]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    return text, chunks[-1].choices[0].finish_reason, *counts


def end(reply: Any) -> Any:
    """What has the counts."""
    return reply[-1] if isinstance(reply, list) else reply


def beside(reply: Any) -> int:
    """How many were answered together."""
    return int(end(reply).st3["batch"])


STREAM = {"stream": True, "stream_options": {"include_usage": True}}


def test_answers_are_those_that_each_gets_alone(tiny: tuple[Any, Any]) -> None:
    """Of other lengths, numbers of pictures, ends and stops, whole and streamed."""
    live, processor = tiny
    pictures = [data_url(noise(n)) for n in range(4)]
    with serving(live, processor) as served:
        plain = said(ask(served, user("what is it", pictures[0]), max_tokens=30))[0].split()
    asked: list[Request] = [
        (user("what is it", pictures[0]), {"max_tokens": 30}),
        (user("what is it", pictures[0]), {"max_tokens": 30, "stop": plain[6], **STREAM}),
        (user("how many of them are red", *pictures[1:3]), {"max_tokens": 25}),
        (user("what is it", pictures[3]), {"max_tokens": 3, **STREAM}),
        (user("which", pictures[1]), {"max_tokens": 1}),
        (user("a", pictures[2]), {"max_tokens": 17, "stop": ["never"]}),
        (user("nothing to see"), {"max_tokens": 8}),  # no picture: another batch
        (user("what is it", pictures[0]), {"max_tokens": 9, "temperature": 1.0, "seed": 3}),
    ]
    word = processor.tokenizer.convert_tokens_to_ids(plain[20])
    live.generation_config.eos_token_id = [word]
    try:
        with serving(live, processor, batch_size=16) as served:
            alone = [ask(served, message, **more) for message, more in asked]
            found = together(served, live, asked)
    finally:
        live.generation_config.eos_token_id = None
    assert [said(reply) for reply in found] == [said(reply) for reply in alone]
    new = [[end(reply).usage.completion_tokens for reply in some] for some in (found, alone)]
    del new[0][1], new[1][1]  # alone, a stop is noticed a token later
    assert new[0] == new[1]
    assert [beside(reply) for reply in alone] == [1] * len(asked)
    assert [beside(reply) for reply in found] == [6] * 6 + [1, 1]
    assert {said(reply)[1] for reply in found} == {"stop", "length"}
    kept = [reply.st3["visual_tokens"] for reply in alone[::2][:3]]
    assert [reply.st3["visual_tokens"] for reply in found[::2][:3]] == kept
    assert not engine._HOOKED


def test_who_hangs_up_or_sends_rubbish_disturbs_nobody(tiny: tuple[Any, Any]) -> None:
    live, processor = tiny
    steps: list[int] = []
    message = user("what is it", data_url(noise(1)))
    with serving(live, processor, batch_size=8) as served:
        right = said(ask(served, message, max_tokens=40))
        counted = live.lm_head.register_forward_hook(lambda *_: steps.append(1))
        try:
            with ThreadPoolExecutor(3) as pool:
                with busy(served, live):
                    waits, runs = (served.sent(body(message, max_tokens=400)) for _ in range(2))
                    bad = pool.submit(ask, served, user("what", cut()))
                    good = [pool.submit(ask, served, message, max_tokens=40) for _ in range(2)]
                    until(lambda: len(served.chat.worker._line._jobs) == 5)
                    waits.close()
                    until(lambda: served.ended("gone") == 1)
                    steps.clear()
                until(lambda: len(steps) > 5)
                runs.close()
                assert isinstance(bad.exception(), openai.BadRequestError)
                assert [said(one.result()) for one in good] == [right] * 2
                assert [beside(one.result()) for one in good] == [3] * 2
            until(lambda: served.chat.active == 0 and not served.chat.worker.running)
        finally:
            counted.remove()
        assert served.ended("gone") == 2
        assert len(steps) < 100
    assert not engine._HOOKED


@pytest.mark.parametrize("heard", [0, 3])
def test_a_batch_that_fails(
    tiny: tuple[Any, Any], heard: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has heard nothing yet is answered alone."""
    live, processor = tiny
    told: list[Exception] = []
    decode = answering.decode_rows

    def fail(*given: Any, on_token: Any) -> None:
        left = [2 * heard]  # tokens of two rows

        def hear(row: int, token: int) -> bool:
            if not left[0]:
                raise RuntimeError("out of memory")
            left[0] -= 1
            return bool(on_token(row, token))

        decode(*given, on_token=hear)

    monkeypatch.setattr(answering, "decode_rows", fail)
    message = user("what is it", data_url(noise(1)))
    with serving(live, processor, batch_size=8, on_error=told.append) as served:
        right = said(ask(served, message, max_tokens=9))
        asked: list[Request] = [
            (message, {"max_tokens": 9}),
            (message, {"max_tokens": 9, **STREAM}),
        ]
        whole, streamed = together(served, live, asked)
        assert (said(whole), beside(whole)) == (right, 1)
        if heard:
            assert isinstance(streamed, openai.APIError)
            assert "out of memory: send fewer" in str(streamed)
        else:
            assert (said(streamed), beside(streamed)) == (right, 1)
        assert said(ask(served, message, max_tokens=9)) == right
        assert len(told) == bool(heard)
    assert not engine._HOOKED


def test_methods_have_names_and_do_not_mix(tiny: tuple[Any, Any]) -> None:
    """Each is a model for clients; a batch is of one method."""
    live, processor = tiny
    names = {"tiny": "st3", "tiny:none": "none", "tiny:fastv:k=1,r=75%": "fastv:k=1,r=75%"}
    message = user("what is it", data_url(noise(1)))
    with serving(live, processor, batch_size=8, also=("none", "fastv:k=1,r=75%")) as served:
        assert [model.id for model in served.client.models.list()] == list(names)
        assert served.client.models.retrieve("tiny:none").id == "tiny:none"
        asked = [(message, {"max_tokens": 9, "model": name}) for name in (*names, *names)]
        found = together(served, live, asked)
        with pytest.raises(openai.BadRequestError, match="'tiny:vtw': this server has 'tiny', 't"):
            ask(served, message, model="tiny:vtw")
        with pytest.raises(openai.NotFoundError, match="unknown model"):
            served.client.models.retrieve("tiny:vtw")
    for (_, more), reply in zip(asked, found, strict=True):
        how = make_method(names[more["model"]])
        ran = answer(live, processor, noise(1), "what is it", how, max_new_tokens=9)
        assert (reply.choices[0].message.content, reply.model) == (ran.text, more["model"])
        assert reply.st3["visual_tokens"]["kept_per_layer"] == ran.session.kept_per_layer()
        assert (beside(reply), reply.st3["method"]) == (2, how.name)


def test_a_full_batch_and_a_queue(tiny: tuple[Any, Any]) -> None:
    """The others are the next batch."""
    live, processor = tiny
    message = user("what is it", data_url(noise(1)))
    with serving(live, processor, batch_size=2) as served:
        found = together(served, live, [(message, {"max_tokens": 4})] * 5)
        assert sorted(map(beside, found)) == [1, 2, 2, 2, 2]
        assert len({said(reply)[0] for reply in found}) == 1
