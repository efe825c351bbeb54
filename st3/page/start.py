"""From a model to a page that is listened to: nothing is sent anywhere, no file is left."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from st3 import demo
from st3.inference.pictures import open_picture
from st3.inference.sources import MAX_BYTES
from st3.methods import make_method
from st3.page.asking import Host

PORT = 7860
_WAITING = 32  # questions in the queue
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self'; media-src 'self' blob:; worker-src 'self' blob:"
)
"""For browsers: whatever gradio's pages may ask of other servers, they do not get."""


class Policy:
    """ASGI middleware that sends `_POLICY` with every reply."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""

        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), (b"referrer-policy", b"no-referrer")]
                message = message | {
                    "headers": [*headers, (b"content-security-policy", _POLICY.encode())]
                }
            await send(message)

        await self.app(scope, receive, sending)


@contextmanager
def alone() -> Iterator[None]:
    """No telemetry, and a folder for uploads gone in the end, for a gradio still to be imported.

    The folder is made behind that: a Ctrl-C in the middle of an import ends the process at once.
    """
    folder = os.path.join(tempfile.gettempdir(), f"st3-page-{secrets.token_hex(8)}")
    said = {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_TEMP_DIR": folder,
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    before = {name: os.environ.get(name) for name in said}
    os.environ.update(said)
    try:
        import gradio  # noqa: F401

        os.mkdir(folder, 0o700)
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def warm(host: Host, method: str) -> None:
    """Answer once, so that the first visitor does not wait for what is made once."""
    picture = open_picture(demo.PICTURE)
    for seen in host.ask(picture, demo.PROMPT, make_method(method), 2, True):
        last = seen
    host.rows(last)


def serve(
    host: Host,
    *,
    method: str = "st3",
    trusted: Sequence[str] = (),
    more: Sequence[str] = (),
    address: str = "127.0.0.1",
    port: int = PORT,
    share: bool = False,
    limit: int = 512,
    on_ready: Callable[[str, str | None], None] = lambda url, shared: None,
) -> None:
    """Listen until a signal comes.

    Args:
        host: has the model.
        method: the spec that the page opens with.
        trusted, more, limit: see `st3.page.handlers.Page`.
        address: that is listened on.
        port: a free one.
        share: whether gradio's tunnel lets everybody in.
        on_ready: gets where the page is, and where to others, if it is shared.

    Raises:
        ImportError: gradio is not installed.
        OSError: the port is not to be had.
    """
    with alone():
        import gradio as gr
        from starlette.middleware import Middleware

        from st3.page.app import build
        from st3.page.handlers import Page, start_of
        from st3.page.showing import CSS

        page = Page(host, start_of(method, limit), trusted=trusted, more=more, limit=limit)
        blocks = build(page).queue(max_size=_WAITING, default_concurrency_limit=1)
        over = threading.Event()
        main = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGTERM, lambda *_: over.set()) if main else None
        try:
            warm(host, method)
            _, url, shared = blocks.launch(
                server_name=address, server_port=port, share=share, quiet=True,
                prevent_thread_lock=True, ssr_mode=False, pwa=False, mcp_server=False,
                enable_monitoring=False, show_error=True, inbrowser=False, footer_links=[],
                max_file_size=4 * MAX_BYTES, state_session_capacity=200, css=CSS,
                theme=gr.themes.Default(
                    font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
                ),
                app_kwargs={"middleware": [Middleware(Policy)]},
            )  # fmt: skip
            on_ready(url, shared)
            over.wait()
        finally:
            blocks.close(verbose=False)
            host.close()
            if main:
                signal.signal(signal.SIGTERM, before)
