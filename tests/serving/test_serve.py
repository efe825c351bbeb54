"""`st3 serve` as clients see it: answers, refusals, limits, and those who hang up."""

from __future__ import annotations

import base64
import gc
import http.server
import io
import json
import socket
import struct
import threading
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from conftest import KEPT
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from served import PATH, Served, ask, body, cut, data_url, endless, noise, serving, until, user

import st3
from st3 import demo
from st3.engine import trim as engine
from st3.inference.generation import answer
from st3.methods import make_method
from st3.serving.http.limits import Limits
from st3.serving.http.questions import Question
from st3.serving.http.requests import ChatRequest
from st3.serving.http.server import bind

LONG = 400  # tokens of an answer that takes a while


@pytest.fixture(scope="module")
def packaged() -> tuple[Any, Any]:
    return st3.load("demo", device="cpu")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return endless(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def served(tiny: tuple[Any, Any]) -> Iterator[Served]:
    with serving(*tiny) as running:
        yield running


def test_answers_are_those_of_st3_run(packaged: tuple[Any, Any], st3_: Any) -> None:
    """The demo through the OpenAI client: whole, streamed, and by the command."""
    url = data_url(Image.open(demo.PICTURE))
    asked = ("Is there a purple square?", "How many objects are there?", demo.PROMPT)
    with serving(*packaged) as served:
        for prompt in asked:
            message = user(prompt, url)
            whole = ask(served, message)
            chunks = ask(served, message, stream=True, stream_options={"include_usage": True})
            ran = answer(*packaged, Image.open(demo.PICTURE), prompt, make_method("st3"))
            said = whole.choices[0]
            assert said.message.content == ran.text
            pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
            assert "".join(pieces) == ran.text
            assert (said.finish_reason, chunks[-2].choices[0].finish_reason) == ("stop", "stop")
            usage = whole.usage
            assert usage == chunks[-1].usage
            assert usage.prompt_tokens == ran.prompt_tokens
            assert usage.completion_tokens == ran.new_tokens
            text = ran.prompt_tokens - 576
            assert usage.kept_prompt_tokens == pytest.approx(text + sum(KEPT) / len(KEPT), abs=0.01)
            assert whole.st3["visual_tokens"] == {"total": 576, "kept_per_layer": KEPT}
            assert whole.st3["kv_cache"]["bytes"] == ran.session.kv_bytes[0]
    told = json.loads(st3_("run", "--json", "--device", "cpu").out)
    assert told["answer"] == said.message.content  # of the bundled picture, and its prompt
    assert told["kv_cache"]["ratio"] == whole.st3["kv_cache"]["ratio"]


def test_several_pictures_and_turns(tiny: tuple[Any, Any], served: Served) -> None:
    """By hand: the template's own words, and `generate` under trim."""
    live, processor = tiny
    pictures = [noise(n) for n in range(3)]
    urls = [data_url(picture) for picture in pictures]
    said = ask(
        served,
        {"role": "developer", "content": "be brief"},
        user("which of these is red", *urls[:2]),
        {"role": "assistant", "content": "the first one"},
        user("and this", urls[2]),
        max_tokens=9,
    )
    words = {"type": "text", "text": "which of these is red"}
    chat = [
        {"role": "system", "content": [{"type": "text", "text": "be brief"}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "image"}, words]},
        {"role": "assistant", "content": [{"type": "text", "text": "the first one"}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "and this"}]},
    ]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    inputs = processor(text=text, images=pictures, return_tensors="pt")
    with st3.trim(live, "st3") as session:
        output = live.generate(**inputs, max_new_tokens=9, do_sample=False)
    new = output[0, inputs["input_ids"].shape[1] :]
    assert said.choices[0].message.content == processor.decode(new, skip_special_tokens=True)
    assert said.choices[0].finish_reason == "length"
    assert said.usage.prompt_tokens == inputs["input_ids"].shape[1]
    assert said.usage.prompt_tokens_details.image_tokens == 3 * 64
    assert said.st3["visual_tokens"]["kept_per_layer"] == session.kept_per_layer()


def test_a_reply_may_come_back_as_it_is(served: Served) -> None:
    """As clients go on with a conversation: they append the message that they got."""
    first = user("what is it", data_url(noise(1)))
    reply = ask(served, first, max_tokens=5).choices[0].message
    again = {"role": "assistant", "content": reply.content}
    others = again | {"tool_calls": None, "annotations": [], "audio": None, "refusal": None}
    said = [
        ask(served, first, message, user("and now"), max_tokens=5).choices[0].message.content
        for message in (again, reply, reply.model_dump(), others)
    ]
    assert said == said[:1] * 4


def test_many_at_once_and_others_beside_them(tiny: tuple[Any, Any], served: Served) -> None:
    """Nobody meets anybody: not in the server, nor in another thread that uses the same model."""
    live, processor = tiny
    method, prompt = make_method("st3"), "what is it"

    def alone(seed: int, how: Any) -> str:
        return answer(live, processor, noise(seed), prompt, how, max_new_tokens=12).text

    def asked(seed: int) -> str:
        said = ask(served, user(prompt, data_url(noise(seed))), max_tokens=12, stream=seed % 2 == 0)
        if seed % 2:
            return str(said.choices[0].message.content)
        return "".join(c.choices[0].delta.content or "" for c in said if c.choices)

    expected = [alone(seed, method) for seed in range(12)]
    plain = [alone(seed, None) for seed in range(4)]
    assert len(set(expected)) > 1
    with ThreadPoolExecutor(12) as pool:
        futures = [pool.submit(asked, seed) for seed in range(12)]
        beside = [alone(seed, None if seed < 4 else method) for seed in range(8)]
        assert [future.result() for future in futures] == expected
    assert beside == plain + expected[4:8]
    until(lambda: served.chat.active == 0 and not served.chat.worker.running)
    assert not engine._HOOKED  # every session is closed


def test_sampling_and_stops(served: Served) -> None:
    message = user("what is it", data_url(noise(1)))
    plain = ask(served, message, max_tokens=20).choices[0].message.content
    drawn = [
        ask(served, message, max_tokens=20, temperature=1.0, top_p=0.95, seed=seed)
        for seed in (1, 1, 2)
    ]
    texts = [said.choices[0].message.content for said in drawn]
    for cold in (1e-40, 1e-6):  # logits over the first are infinite
        said = ask(served, message, max_tokens=20, temperature=cold, top_p=0.95)
        assert said.choices[0].message.content == plain
    assert texts[0] == texts[1]
    assert len({*texts, plain}) == 3
    middle = plain.split()[2]
    for stream in (False, True):
        said = ask(served, message, max_tokens=LONG, stop=["never", middle], stream=stream)
        if stream:
            *chunks, last = said
            assert last.choices[0].finish_reason == "stop"
            text = "".join(c.choices[0].delta.content or "" for c in chunks)
        else:
            assert said.choices[0].finish_reason == "stop"
            assert said.usage.completion_tokens < 20
            text = said.choices[0].message.content
        assert text == plain[: plain.index(middle)].rstrip()


def _bomb() -> bytes:
    """A PNG that says that it has 400 million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000))


def _url(data: bytes) -> str:
    import base64

    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


SAID = user("what is it")
BAD: list[tuple[Any, int, str]] = [
    (b"{nope", 400, "the body is no JSON"),
    (b"[" * 100_000, 400, "the body is no JSON"),
    (b"\xff\xfe", 400, "the body is no JSON"),
    ([], 400, "the body is to be an object"),
    ({}, 400, "model is missing"),
    (body(), 400, "messages: "),
    (body(SAID) | {"model": "gpt"}, 400, "unknown model 'gpt': this server has 'tiny'"),
    (body(SAID, banana=1), 400, "unknown parameter banana"),
    (body(SAID, n=2), 400, "n is served as far as it changes nothing"),
    (body(SAID, tools=[{}]), 400, "tools is served as far"),
    (body(SAID, logprobs=True), 400, "logprobs is served as far"),
    (body(SAID, temperature=-1), 400, "temperature: "),
    (body(SAID, max_tokens=0), 400, "max_tokens: "),
    (body(SAID, stop=[""]), 400, "stop.0: "),
    (body(user(" ")), 400, "the last message is empty"),
    (body(SAID, {"role": "assistant", "content": "x"}), 400, "end with the user's question"),
    (body({"role": "tool", "content": "x"}), 400, "messages.0.role: "),
    (body({"role": "user", "content": None}), 400, "messages.0.content is to be a text, or a list"),
    (body({"role": "assistant", "content": "x", "tool_calls": [{}]}, SAID), 400, "tool_calls: "),
    (body(user("a <image> b")), 400, "leave <image> out"),
    (body(user("x " * 3000)), 400, "the model's context is 2048"),
    (body(user("x", _url(b"hello"))), 400, "not a picture that Pillow can read"),
    (body(user("x", "data:image/png;base64,?")), 400, "no base64"),
    (body(user("x", "data:image/png;base64,")), 400, "is empty"),
    (body(user("x", _url(_bomb()))), 400, "more than 100 million"),
    (body(user("x", cut())), 400, "is a damaged picture"),
    (body(user("x", data_url(noise(0)), _url(b"no"))), 400, "picture 2: the data: URL is not"),
    (body(user("x", *[data_url(noise(0))] * 17)), 400, "17 pictures are more than 16"),
    (body(user("x", "/etc/passwd")), 400, "is to be a data: URL"),
    (body(user("x", "file:///etc/passwd")), 400, "is to be a data: URL"),
    (body(user("x", "http://127.0.0.1:1/x.png")), 400, "not fetched from there"),
    (body(user("x", "http://[::bad/x.png")), 400, "no valid URL"),
]


def post(served: Served, data: Any, kind: str = "application/json", **headers: str) -> Any:
    sent = data if isinstance(data, bytes) else json.dumps(data).encode()
    request = urllib.request.Request(
        served.url + PATH, sent, {"Content-Type": kind} | headers, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, json.load(reply), reply.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error), error.headers


@pytest.mark.parametrize(("data", "status", "line"), BAD, ids=[line for *_, line in BAD])
@pytest.mark.parametrize("stream", [False, True])
def test_bad_input_is_a_line(
    served: Served, data: Any, status: int, line: str, stream: bool
) -> None:
    if isinstance(data, dict):
        data = data | {"stream": stream}
    code, document, _ = post(served, data)
    assert (code, document["error"]["code"] != "") == (status, True)
    said = document["error"]["message"]
    assert line in said
    assert len(said.splitlines()) == 1
    assert "etc/passwd" not in said


def test_other_kinds_of_body_and_other_routes(served: Served) -> None:
    assert post(served, body(SAID), "text/plain")[0] == 400
    code, document, _ = post(served, b" " * 69_000_000)
    assert (code, document["error"]["message"]) == (413, "the body is larger than 67.6667 MB")
    for path, status in (("/v1/models", 200), ("/v1/models/tiny", 200), ("/v1/models/x", 404),
                         ("/none", 404), (PATH, 405), ("/health", 200)):  # fmt: skip
        try:
            with urllib.request.urlopen(served.url + path, timeout=60) as reply:
                found = reply.status
        except urllib.error.HTTPError as error:
            with error:
                found, line = error.code, json.load(error)["error"]["message"]
                allowed = error.headers["Allow"]
            assert "\n" not in line
            assert allowed == ("POST" if status == 405 else None)
        assert found == status, path


def test_metrics_are_the_sums(tiny: tuple[Any, Any]) -> None:
    with serving(*tiny) as served:
        usages = [
            ask(served, user("what", *[data_url(noise(n))] * n), max_tokens=2 + n).usage
            for n in range(3)
        ]
        post(served, b"{")
        with urllib.request.urlopen(f"{served.url}/metrics", timeout=60) as reply:
            text = reply.read().decode()
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found["st3_requests_total", "200"] == 3
    assert found["st3_requests_total", "400"] == 1
    assert found["st3_ttft_seconds_count",] == found["st3_tpot_seconds_count",] == 3
    assert found["st3_prompt_tokens_total",] == sum(usage.prompt_tokens for usage in usages)
    assert found["st3_generated_tokens_total",] == 2 + 3 + 4
    assert found["st3_visual_tokens_total",] == 3 * 64
    kept = sum(usage.prompt_tokens_details.kept_image_tokens for usage in usages)
    assert found["st3_visual_tokens_kept_total",] == pytest.approx(kept, abs=0.02)
    assert found["st3_kv_bytes_saved_total",] > 0
    assert found["st3_requests_active",] == 0


@pytest.mark.parametrize("stream", [False, True])
def test_who_hangs_up_frees_its_work(tiny: tuple[Any, Any], stream: bool) -> None:
    """One that runs, and one that waits: neither is computed to its end."""
    live, processor = tiny
    steps = []
    counted = live.lm_head.register_forward_hook(lambda *_: steps.append(1))
    message = user("what is it", data_url(noise(2)))
    try:
        with serving(live, processor) as served:
            runs = served.sent(body(message, max_tokens=LONG, stream=stream))
            until(lambda: len(steps) > 3)
            waits = served.sent(body(message, max_tokens=LONG))
            until(lambda: served.chat.active == 2)
            for connection in (waits, runs):
                connection.close()
            until(lambda: served.ended("gone") == 2 and not served.chat.worker.running)
            assert len(steps) < LONG
            assert served.chat.active == 0
            before = len(steps)
            assert ask(served, message, max_tokens=3).usage.completion_tokens == 3
            assert len(steps) == before + 3
    finally:
        counted.remove()
    assert not engine._HOOKED


def test_a_queue_that_is_full(tiny: tuple[Any, Any]) -> None:
    message = user("what is it", data_url(noise(2)))
    with serving(*tiny, limits=Limits(queue=1)) as served:
        first, second = (served.sent(body(message, max_tokens=LONG)) for _ in range(2))
        until(lambda: served.chat.active == 2)
        code, document, headers = post(served, body(message))
        assert (code, headers["Retry-After"]) == (429, "1")
        assert document["error"]["message"] == "1 requests are waiting already: try again later"
        first.close()
        second.close()
        until(lambda: served.chat.active == 0)
        with pytest.raises(openai.BadRequestError):  # as the client tells them apart
            ask(served, message, n=2)
        assert ask(served, message, max_tokens=1).usage.completion_tokens == 1


def test_what_waits_is_held_once_and_within_bounds(tiny: tuple[Any, Any]) -> None:
    """As bytes of pictures, not as what was sent; and not at all once the model has it."""
    live, processor = tiny
    url, goes_on = data_url(noise(2, 200)), threading.Event()
    size = len(base64.b64decode(url.partition(",")[2])) + len("what is it")
    asked = body(user("what is it", url), max_tokens=1)
    sent = len(json.dumps(asked).encode())

    def wait(*_: Any) -> None:
        goes_on.wait(60)

    def counted(kind: type) -> int:
        gc.collect()  # what other tests have left in circles
        return sum(type(one) is kind for one in gc.get_objects())

    before = {kind: counted(kind) for kind in (ChatRequest, Question)}

    def alive(kind: type) -> int:
        return counted(kind) - before[kind]

    stopped = live.lm_head.register_forward_pre_hook(wait)
    try:
        with serving(live, processor, limits=Limits(waiting=sent + size)) as served:
            with served.sent(asked):
                until(lambda: served.chat.held == size and served.chat.worker.running)
                until(lambda: not alive(ChatRequest) and not alive(Question))
                with served.sent(asked):
                    until(lambda: served.chat.held == 2 * size)
                    until(lambda: not alive(ChatRequest) and alive(Question) == 1)
                    code, document, headers = post(served, asked)
                    assert (code, headers["Retry-After"]) == (429, "1")
                    line = document["error"]["message"]
                    assert line.endswith("are waiting already: try again later")
                    assert served.chat.held == 2 * size
                    goes_on.set()
                    until(lambda: served.chat.active == 0)
            assert served.chat.held == 0
        with serving(live, processor, limits=Limits(waiting=1)) as served:
            assert post(served, asked)[0] == 200  # alone
    finally:
        goes_on.set()
        stopped.remove()


def test_time_that_is_up(tiny: tuple[Any, Any]) -> None:
    """While it is computed, while it streams, and while its body has not come."""
    message = user("what is it", data_url(noise(2)))
    with serving(*tiny, limits=Limits(seconds=0.5)) as served:
        code, document, _ = post(served, body(message, max_tokens=1900))
        assert (code, document["error"]["code"]) == (408, "timeout")
        assert document["error"]["message"] == "not done within 0.5 s: ask for less, or later"
        with pytest.raises(openai.APIError, match="not done within"):
            ask(served, message, max_tokens=1900, stream=True)
        with served.sent(body(message), part=0.5) as slow:
            assert slow.recv(100).startswith(b"HTTP/1.1 408")
        until(lambda: served.chat.active == 0 and not served.chat.worker.running)
        until(lambda: served.ended("408") == 3)


def test_a_key(tiny: tuple[Any, Any]) -> None:
    with serving(*tiny, key="secret") as served:
        for headers in ({}, {"Authorization": "Bearer Secret"}, {"Authorization": "secret"}):
            code, document, _ = post(served, body(SAID), **headers)
            assert (code, document["error"]["code"]) == (401, "no_key")
        assert ask(served, SAID, max_tokens=1).usage.completion_tokens == 1
        with urllib.request.urlopen(f"{served.url}/health", timeout=60) as reply:
            assert json.load(reply) == {"status": "ok", "model": "tiny", "requests": 0}


class _Pictures(http.server.BaseHTTPRequestHandler):
    """A picture, and a way to it from elsewhere."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", f"http://{self.path.removeprefix('/to/')}/x.png")
            self.end_headers()
            return
        file = io.BytesIO()
        noise(3).save(file, "PNG")
        self.send_response(200)
        self.end_headers()
        self.wfile.write(file.getvalue())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def pictures() -> Iterator[Any]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Pictures) as server:
        server.asked = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_pictures_are_fetched_from_named_hosts_alone(tiny: Any, pictures: Any) -> None:
    port = pictures.server_address[1]
    named, other = f"localhost:{port}", f"127.0.0.1:{port}"  # the same, to be seen
    with serving(*tiny, limits=Limits(hosts=frozenset({named}))) as served:
        fetched = ask(served, user("what is it", f"http://{named}/x.png"), max_tokens=5)
        sent = ask(served, user("what is it", data_url(noise(3))), max_tokens=5)
        assert fetched.choices[0].message.content == sent.choices[0].message.content
        assert pictures.asked == ["/x.png"]
        for url, line in (
            (f"http://{other}/x.png", "not fetched from there"),
            (f"http://{named}@{other}/x.png", "not fetched from there"),
            (f"ftp://{named}/x.png", "is to be a data: URL"),
            (f"http://{named}/to/{other}", "redirects to a server that is not to be asked"),
        ):
            code, document, _ = post(served, body(user("x", url)))
            assert (code, line in document["error"]["message"]) == (400, True), url
        assert pictures.asked == ["/x.png", f"/to/{other}"]
        ask(served, user("what is it", f"http://{named}/to/{named}"), max_tokens=1)


def test_a_model_that_fails(tiny: tuple[Any, Any]) -> None:
    """Nobody's request is to blame: 500, and the next is answered."""
    live, processor = tiny
    told: list[Exception] = []

    def fail(*_: Any) -> None:
        raise RuntimeError("a bad day\nfor all")

    broken = live.lm_head.register_forward_hook(fail)
    with serving(live, processor, on_error=told.append) as served:
        code, document, _ = post(served, body(SAID))
        broken.remove()
        assert (code, document["error"]["message"]) == (
            500, "the model failed: RuntimeError: a bad day for all",
        )  # fmt: skip
        until(lambda: told)  # behind the reply
        assert [str(error) for error in told] == ["a bad day\nfor all"]
        assert told[0].__traceback__ is None  # which holds tensors
        assert ask(served, SAID, max_tokens=1).usage.completion_tokens == 1
    assert not engine._HOOKED


def test_a_failure_that_nobody_can_be_told_of(tiny: tuple[Any, Any]) -> None:
    """rich ends the process where stderr is closed; the model's thread goes on all the same."""
    live, processor = tiny

    def fail(*_: Any) -> None:
        raise RuntimeError("a bad day")

    def closed(_: BaseException) -> None:
        raise SystemExit(1)

    broken = live.lm_head.register_forward_hook(fail)
    with serving(live, processor, on_error=closed) as served:
        assert post(served, body(SAID))[0] == 500
        broken.remove()
        assert ask(served, SAID, max_tokens=1).usage.completion_tokens == 1


def test_a_thread_that_ends(tiny: tuple[Any, Any]) -> None:
    """Whoever waits is told, and whoever comes later, at once."""
    live, processor = tiny
    told: list[BaseException] = []
    waits = threading.Event()

    def leave(*_: Any) -> None:
        waits.wait(60)
        raise SystemExit(3)

    leaving = live.lm_head.register_forward_hook(leave)
    try:
        with (
            serving(live, processor, on_error=told.append) as served,
            ThreadPoolExecutor(2) as pool,
        ):
            asked = [pool.submit(post, served, body(SAID)) for _ in range(2)]
            until(lambda: served.chat.active == 2)
            waits.set()
            replies = [one.result() for one in asked] + [post(served, body(SAID))]
            for code, document, headers in replies:
                assert (code, headers["Retry-After"]) == (503, "5")
                assert document["error"]["message"] == "the model's thread ended: SystemExit: 3"
            with pytest.raises(urllib.error.HTTPError) as health:
                urllib.request.urlopen(f"{served.url}/health", timeout=60)
            with health.value as reply:
                assert (reply.code, json.load(reply)["status"]) == (503, "failed")
            until(lambda: told)
            assert [str(error) for error in told] == ["3"]
    finally:
        leaving.remove()


def test_a_port_in_use(st3_: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = st3_("serve", "--port", port)
    assert result.code == 1
    assert result.err.splitlines() == [
        f"st3: port {port} of 127.0.0.1 is not to be had (address already in use): give another "
        "--port"
    ]


def test_the_second_of_two_starts_knows_before_it_loads_a_model() -> None:
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(ValueError, match=f"^port {port} of 127.0.0.1 is not to be had"):
            bind("127.0.0.1", port)
    bind("127.0.0.1", port).close()  # and at once after an end


def test_what_is_wrong_at_the_start_is_a_line(
    st3_: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for arguments, code, line in (
        (["--host", "0.0.0.0"], 2, "set ST3_API_KEY to a key that they must send"),
        (["--host", "nowhere.invalid", "--no-api-key"], 1, "there is no such address"),
        (["--api-key", " "], 2, "the API key is empty"),
        (["--api-key", "x", "--no-api-key"], 2, "leave one out"),
        (["--timeout", "0"], 2, "--timeout: give a number above 0"),
        (["--model", tmp_path], 1, "is no checkpoint"),
        (["--method", "best"], 2, "unknown method"),
        (["--also", "none,best"], 2, "--also: unknown method"),
    ):
        result = st3_("serve", "--port", 0, *arguments)
        assert (result.code, len(result.err.splitlines())) == (code, 1), result.err
        assert line in result.err
    monkeypatch.setitem(__import__("sys").modules, "uvicorn", None)
    monkeypatch.delitem(__import__("sys").modules, "st3.serving.http.server", raising=False)
    result = st3_("serve", "--port", 0)
    assert (result.code, "pip install 'st3[serve]'" in result.err) == (1, True)
