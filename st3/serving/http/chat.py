"""A chat completion's way: admitted, read, queued up, answered; and every way in which it may end.

A request holds one of the server's places from its first byte to its last, whoever is slow, and for
no longer than the server's time for it. A client that hangs up gives its place back at once. What
is sent is held as it came and then as pictures, once, and all of it together within a bound.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Mapping

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from st3.methods import Method
from st3.serving.http.job import Done, Job, Left, Piece
from st3.serving.http.limits import Limits, Refusal, invalid
from st3.serving.http.metrics import Metrics
from st3.serving.http.questions import Question, read_question
from st3.serving.http.replies import Voice, error_document, error_reply, event
from st3.serving.http.requests import ChatRequest, read_request
from st3.serving.http.worker import Worker

_PATIENCE = 5.0  # seconds, for clients that are told no


class Chat:
    """Answers POST /v1/chat/completions, as an ASGI application.

    Args:
        worker: has the model.
        methods: how to trim, by what clients call the model; the first is the model's plain name.
        limits: of the server.
        metrics: are kept up to date.
        seed: of sampling, where a request has none.

    Attributes:
        active: requests that run or wait. `held`: bytes that they hold.
    """

    def __init__(
        self, worker: Worker, methods: Mapping[str, Method], limits: Limits, metrics: Metrics,
        seed: int = 0,
    ) -> None:  # fmt: skip
        self.worker, self.methods, self.limits, self.metrics = worker, methods, limits, metrics
        self.seed, self.active, self.held = seed, 0, 0

    @property
    def name(self) -> str:
        """Of the model."""
        return next(iter(self.methods))

    def method(self, name: str, status: int) -> Method:
        """How to trim for those who ask for the model under a name.

        Args:
            status: of the refusal.

        Raises:
            Refusal: no such name.
        """
        if name in self.methods:
            return self.methods[name]
        known = ", ".join(map(repr, self.methods))
        line = f"unknown model {name!r}: this server has {known}"
        raise Refusal(status, line, "model_not_found")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        exchange = _Exchange(self, scope, receive, send)
        status: str = "500"
        try:
            try:
                with self._place():
                    async with asyncio.timeout(self.limits.seconds):
                        await exchange.run()
                status = "200"
            except TimeoutError:
                raise Refusal(
                    408, f"not done within {self.limits.seconds:g} s: ask for less, or later",
                    "timeout",
                ) from None  # fmt: skip
        except Refusal as refusal:
            status = str(refusal.status)
            with contextlib.suppress(TimeoutError):  # of a client that does not listen
                async with asyncio.timeout(2 * _PATIENCE):
                    await exchange.refuse(refusal)
        except ClientDisconnect:
            status = "gone"
        finally:
            self.metrics.requests.labels(status).inc()

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        if self.active >= self.limits.queue + self.worker.batch_size:
            raise Refusal(
                429, f"{self.limits.queue} requests are waiting already: try again later",
                "queue_full",
            )  # fmt: skip
        self.active += 1
        self.metrics.active.set(self.active)
        try:
            yield
        finally:
            self.active -= 1
            self.metrics.active.set(self.active)


class _Exchange:
    """One request and its reply."""

    def __init__(self, chat: Chat, scope: Scope, receive: Receive, send: Send) -> None:
        self.chat, self.scope, self.receive, self.send = chat, scope, receive, send
        self.arrived = time.perf_counter()
        self.held = 0  # bytes of it
        self.whole = False  # whether the body has come
        self.begun = False  # whether a stream is under way, so that its status is said

    async def run(self) -> None:
        """All of it.

        Raises:
            Refusal: it is not answered, or not to its end.
            ClientDisconnect: nobody listens any more.
        """
        try:
            request = read_request(await self._body())
            method = self.chat.method(request.model, 400)
            job = Job(method, bool(request.stream), self.arrived)
            options = request.stream_options
            voice = Voice(request.model, options is not None and options.include_usage)
            watch = asyncio.create_task(self._watch(job))
            try:
                job.question = await self._question(request, job, watch)
                del request  # its pictures are in the question
                self.chat.worker.submit(job)
                await self._attend(job, voice)
            finally:
                job.drop()
                watch.cancel()
        finally:
            self._hold(0)

    async def refuse(self, refusal: Refusal) -> None:
        """Say that it is not answered, however far it has come."""
        if self.begun:
            last = event(error_document(refusal))
            await self.send({"type": "http.response.body", "body": last, "more_body": False})
            return
        if not self.whole and refusal.status != 408:
            await self._discard()
        await error_reply(refusal)(self.scope, self.receive, self.send)

    async def _discard(self) -> None:
        """Take the rest of a body: some clients listen only when they have sent all of it."""
        left = self.chat.limits.body
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                while left > 0:
                    message = await self.receive()
                    left -= len(message.get("body", b""))
                    if not message.get("more_body"):
                        return

    def _check(self, size: int) -> None:
        """Whether it may hold so many bytes, beside all others."""
        most, others = self.chat.limits.waiting, self.chat.held - self.held
        if others and others + size > most:
            raise Refusal(
                429, f"requests of {most / 1e6:g} MB are waiting already: try again later",
                "queue_full",
            )  # fmt: skip

    def _hold(self, size: int) -> None:
        """It holds so many bytes from now on."""
        if size > self.held:
            self._check(size)
        self.chat.held += size - self.held
        self.held = size

    async def _question(
        self, request: ChatRequest, job: Job, watch: asyncio.Task[None]
    ) -> Question:
        reading = asyncio.ensure_future(
            asyncio.to_thread(read_question, request, self.chat.limits, self.chat.seed)
        )
        try:
            await asyncio.wait((reading, watch), return_when=asyncio.FIRST_COMPLETED)
            if job.gone:
                raise ClientDisconnect
            question = reading.result()
        finally:
            reading.cancel()
        self._hold(question.bytes)  # with what was fetched
        return question

    async def _body(self) -> bytearray:
        request, most = Request(self.scope, self.receive), self.chat.limits.body
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # a form of some web page could send anything else
            raise invalid("send JSON, and say so: Content-Type: application/json")
        said, body = request.headers.get("content-length", ""), bytearray()
        large = Refusal(413, f"the body is larger than {most / 1e6:g} MB", "body_too_large")
        if said.isdecimal():
            if int(said) > most:
                raise large
            self._check(int(said))  # before it is sent
        async for chunk in request.stream():
            body += chunk
            if len(body) > most:
                raise large
            self._hold(len(body))
        self.whole = True
        return body

    async def _watch(self, job: Job) -> None:
        """Until the client hangs up."""
        while (await self.receive())["type"] != "http.disconnect":
            pass
        job.drop()

    async def _attend(self, job: Job, voice: Voice) -> None:
        """Pass on what the model says."""
        while True:
            said = await job.next()
            if isinstance(said, Left):
                raise ClientDisconnect
            if isinstance(said, Refusal):
                raise said
            if not job.streams:
                assert isinstance(said, Done)
                self.chat.metrics.answered(said)
                await JSONResponse(voice.whole(said))(self.scope, self.receive, self.send)
                return
            if not self.begun:
                await self._begin(voice)
            if isinstance(said, Piece):
                await self._send(voice.piece(said.text))
                continue
            self.chat.metrics.answered(said)
            await self._send(voice.end(said), more=False)
            return

    async def _begin(self, voice: Voice) -> None:
        self.begun = True
        headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]
        await self.send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._send(voice.begin())

    async def _send(self, body: bytes, more: bool = True) -> None:
        await self.send({"type": "http.response.body", "body": body, "more_body": more})
