"""Whose call is it? Trimming belongs to a context, and to the threads that are started in it.

`with st3.trim(...)` opens a scope in the context that runs it (`contextvars`: a thread, an asyncio
task, and what `asyncio.to_thread` starts from it). A plain thread begins with an empty context, and
nothing tells it who started it. So while a scope is open, `threading.Thread.start` notes that down:
a thread belongs to the scopes of whoever started it, as the usual pattern of a streamer expects,
and any other is left alone.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable
from contextvars import ContextVar
from typing import TypeVar

_MINE: ContextVar[tuple[Scope, ...]] = ContextVar("st3_scopes", default=())
_BORN: weakref.WeakKeyDictionary[threading.Thread, tuple[Scope, ...]] = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()
_open = 0
_watched = False
_stock_start = threading.Thread.start


class Scope:
    """What is open from `enter` to `leave`, which another context may call than `enter`."""

    def __init__(self) -> None:
        self.open = False

    def enter(self) -> None:
        """Open it, in the calling context."""
        _watch(1)
        self.open = True
        _MINE.set((*_own(), self))

    def leave(self) -> None:
        """Close it, everywhere."""
        self.open = False
        _MINE.set(_own())
        _watch(-1)


S = TypeVar("S", bound=Scope)


def opened_here(scopes: Iterable[S]) -> S | None:
    """The one of these that this context has opened itself."""
    return _first(scopes, _own())


def whose_call(scopes: Iterable[S]) -> S | None:
    """The one of these that the calling context, or else its thread, belongs to."""
    scopes = list(scopes)
    return _first(scopes, _own()) or _first(scopes, _BORN.get(threading.current_thread(), ()))


def _own() -> tuple[Scope, ...]:
    return tuple(scope for scope in _MINE.get() if scope.open)


def _first(scopes: Iterable[S], among: tuple[Scope, ...]) -> S | None:
    return next((scope for scope in scopes if scope.open and scope in among), None)


def _start(thread: threading.Thread) -> None:
    """In the place of `Thread.start`."""
    inherited = (*_own(), *_BORN.get(threading.current_thread(), ()))
    if inherited:
        _BORN[thread] = inherited
    _stock_start(thread)


def _watch(change: int) -> None:
    """Count the open scopes; `Thread.start` is ours while there are any."""
    global _open, _watched, _stock_start
    with _LOCK:
        _open += change
        if _open and not _watched:
            _watched, _stock_start = True, threading.Thread.start
            threading.Thread.start = _start  # type: ignore[assignment, method-assign]
        # Whoever wrapped it meanwhile calls ours, which then stays.
        elif not _open and threading.Thread.start is _start:
            _watched = False
            threading.Thread.start = _stock_start  # type: ignore[method-assign]
