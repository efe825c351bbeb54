"""The routes of a server, and who may ask."""

from __future__ import annotations

import hmac
import time
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from st3.serving.http.chat import Chat
from st3.serving.http.limits import Refusal
from st3.serving.http.replies import error_reply


def build_app(chat: Chat, key: str | None = None) -> ASGIApp:
    """An ASGI application.

    Args:
        chat: answers.
        key: that clients must have for what is under /v1; None lets everybody ask.
    """
    began = int(time.time())

    def described(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": began, "owned_by": "st3"}

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [*map(described, chat.methods)]})

    async def one_model(request: Request) -> Response:
        name = request.path_params["name"]
        try:
            chat.method(name, 404)
        except Refusal as refusal:
            return error_reply(refusal)
        return JSONResponse(described(name))

    async def health(request: Request) -> Response:
        state = chat.worker.state
        document = {"status": state, "model": chat.name, "requests": chat.active}
        return JSONResponse(document, 200 if state == "ok" else 503)

    async def metrics(request: Request) -> Response:
        return chat.metrics.reply()

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        what = f"{request.method} {request.url.path}: {error.detail}"
        reply = error_reply(Refusal(error.status_code, what, "no_route"))
        reply.headers.update(error.headers or {})  # what else is allowed there
        return reply

    async def failed(request: Request, error: Exception) -> Response:
        line = f"the server failed: {type(error).__name__}"
        return error_reply(Refusal(500, line, "internal_error"))

    handlers: dict[Any, Any] = {HTTPException: refused, Exception: failed}
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", one_model),
            Route("/health", health),
            Route("/metrics", metrics),
        ],
        exception_handlers=handlers,
    )
    return app if key is None else _Locked(app, key)


class _Locked:
    """Lets those through that have the key, and everybody to what tells of the server alone."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self.app, self.key = app, f"bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "http" and scope["path"].startswith("/v1"):
            said = Request(scope).headers.get("authorization", "").encode("latin-1")
            kind, _, rest = said.partition(b" ")
            if not hmac.compare_digest(kind.lower() + b" " + rest, self.key):
                refusal = Refusal(401, "send the server's key: Authorization: Bearer KEY", "no_key")
                await error_reply(refusal)(scope, receive, send)
                return
        await self.app(scope, receive, send)
