"""What one timed generation says, and who may answer in place of the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

from st3.profiling.shape import Workload


@dataclass(frozen=True)
class Run:
    """One `generate`; times in milliseconds, or operations where a counter ran.

    Attributes:
        ttft: to the first token, vision tower included.
        vision: tower alone; projector not. None of a peer.
        prefill: decoder alone, over the prompt. None of a peer.
        steps: from token to token.
        total: to the last token.
        peak: bytes of device memory at most, weights included; None off CUDA.
        kv_bytes: live keys and values after prefill and in each step; None for stock.
        allocated: bytes of the cache's buffers at the end; None for stock.
        recording: what compiling and recording took, in earlier generations; None without.
        selection: choosing and dropping tokens, of what is in `vision` and `prefill`; None for
            stock, and where prefill was a replay.
        entered: visual tokens of each row that entered layer 1; None for stock.
    """

    ttft: float
    vision: float | None
    prefill: float | None
    steps: tuple[float, ...]
    total: float
    peak: int | None
    kv_bytes: tuple[int, ...] | None
    allocated: int | None
    recording: float | None = None
    selection: float | None = None
    entered: tuple[int, ...] | None = None

    def until(self, new: int) -> Run:
        """The same run as far as its first `new` tokens; `peak` and `allocated` stay the whole's.

        Greedy decoding does the same work for them however many follow.
        """
        steps = self.steps[: new - 1]
        held = None if self.kv_bytes is None else self.kv_bytes[:new]
        return replace(self, steps=steps, total=self.ttft + sum(steps), kv_bytes=held)


class Unavailable(Exception):
    """A variant that cannot be had here; the message, one line, says why."""


class Peer(Protocol):
    """A pipeline that runs in another process, untrimmed.

    Attributes:
        seconds: that making it ready took; 0 before, which the first answer waits for.
        facts: what it told of itself then.
    """

    seconds: float
    facts: dict[str, Any]

    @property
    def element(self) -> int | None:
        """Bytes of a number in its cache, None if it has not told."""

    def generate(self, inputs: dict[str, Any], work: Workload) -> Run:
        """One answer; raises `Unavailable`."""
        ...
