"""A request on its way between two threads: the loop that talks to clients, and the model's.

The model's thread tells what happens, the loop listens; the loop says when nobody listens any more,
and the model's thread asks after each token. Nothing else is shared.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from st3.methods import Method
from st3.serving.http.limits import Refusal
from st3.serving.http.questions import Question


@dataclass(frozen=True)
class Piece:
    """Some text of the answer."""

    text: str


@dataclass(frozen=True)
class Done:
    """The answer is whole.

    Attributes:
        text: all of it.
        finish: `stop` where the model ended it, or a stop of the request's; else `length`.
        prompt_tokens, new_tokens: as sent, nothing dropped.
        method: that trimmed.
        visual: visual tokens as sent. `kept`: of them in each layer at the end of prefill.
        kv_bytes, untrimmed_kv_bytes: of the KV cache then, and what it would have been.
        ttft: seconds from the request's arrival to its first token.
        timing: milliseconds from the start of `generate`, as `st3 run --json` has them.
        batch: requests that were answered together with it, itself included.
    """

    text: str
    finish: str
    prompt_tokens: int
    new_tokens: int
    method: str
    visual: int
    kept: tuple[int, ...]
    kv_bytes: int
    untrimmed_kv_bytes: int
    ttft: float
    timing: dict[str, float | None]
    batch: int

    @property
    def kept_visual(self) -> float:
        """Visual tokens kept, the mean over layers."""
        return sum(self.kept) / len(self.kept)


@dataclass(frozen=True)
class Left:
    """The client has hung up."""


Event = Piece | Done | Refusal | Left


class Job:
    """One request, made in the loop that listens to it.

    Args:
        method: how to trim.
        streams: whether pieces are wanted, or the whole alone.
        arrived: on `time.perf_counter`.

    Attributes:
        question: what is asked, once that is known.
        gone: whether nobody listens any more.
        last: what was told last, None where nothing was.
    """

    def __init__(self, method: Method, streams: bool, arrived: float) -> None:
        self.question: Question | None = None
        self.method, self.streams, self.arrived, self.gone = method, streams, arrived, False
        self.last: Event | None = None
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def goes_with(self, other: Job) -> bool:
        """Whether they make a batch; what is drawn is drawn alone, so that its seed decides."""
        questions = self.question, other.question
        greedy = all(one is not None and one.greedy for one in questions)
        return greedy and self.method is other.method

    def tell(self, event: Event) -> None:
        """From any thread; nothing, where nobody listens."""
        if self.gone:
            return
        self.last = event
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the loop is closed
            self.gone = True

    async def next(self) -> Event:
        """What happens next; in the loop."""
        return await self._events.get()

    def drop(self) -> None:
        """Nobody listens any more: what waits is given up, and what runs ends with its token."""
        self.tell(Left())
        self.gone = True
        self.question = None  # its pictures
