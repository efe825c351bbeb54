"""From a port to the last answer: uvicorn, and what becomes of requests when it is told to stop."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from st3.serving.http.worker import Worker


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens, so that the port is had before a model is loaded; 0 is any.

    Who connects until then waits. A port that is bound alone would be another's to listen on.

    Raises:
        ValueError: another has it, or it is not to be had.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise ValueError(f"--host {host}: there is no such address ({error})") from None
    found = socket.socket(family, kind)
    try:
        if os.name == "posix":  # elsewhere it would take the port from whoever has it
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen()
    except OSError as error:
        found.close()
        why = (error.strerror or str(error)).lower()
        raise ValueError(
            f"port {port} of {host} is not to be had ({why}): give another --port"
        ) from None
    return found


def url_of(bound: socket.socket) -> str:
    """Where clients ask."""
    host, port = bound.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class Server(uvicorn.Server):
    """uvicorn's, which tells the model's thread when it stops.

    Args:
        app: see `build_app`.
        worker: answers what runs then, and refuses what waits.
        on_start: called once it listens, and knows what to do with signals.
    """

    def __init__(
        self, app: ASGIApp, worker: Worker, on_start: Callable[[], None] = lambda: None
    ) -> None:
        quiet: dict[str, Any] = {"log_config": None, "access_log": False, "server_header": False}
        super().__init__(uvicorn.Config(app, lifespan="off", ws="none", **quiet))
        self.worker, self.on_start = worker, on_start
        logging.getLogger("uvicorn.error").addFilter(_tells)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        await super().startup(sockets)
        self.on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen no more, and wait for what runs."""
        self.worker.finish()
        await super().shutdown(sockets)

    def serve_on(self, bound: socket.socket) -> None:
        """Until a signal comes; the first lets what runs be finished, a second Ctrl-C does not."""
        main = threading.current_thread() is threading.main_thread()
        # uvicorn raises a signal anew once it has ended, and SIGTERM would kill us before our end.
        before: Any = signal.signal(signal.SIGTERM, lambda *_: None) if main else None
        try:
            self.run(sockets=[bound])
        finally:
            if main:
                signal.signal(signal.SIGTERM, before)
            self.worker.close()
            bound.close()


def _tells(record: logging.LogRecord) -> bool:
    """Whether it is worth saying: not that a second Ctrl-C cut an answer off."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, asyncio.CancelledError)
