"""How many rows make a batch: as memory allows, which is measured, and learnt where it ran out."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from st3.engine.session import TrimSession
from st3.inference.device_map import home
from st3.machine import free_memory
from st3.units import si

MOST = {"cuda": 256, "cpu": 16}
"""Rows of a batch where nobody says how many (ours): on a CPU more of them make nothing faster."""
_PROBE = 4  # rows of the first batch, whose memory is measured
_SHARE = 0.85  # of what is free that a batch may take
_OUT = ("out of memory", "can't allocate memory", "not enough memory")


def out_of_memory(error: BaseException) -> bool:
    """Whether memory is what it lacks."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT)
    )


@dataclass(frozen=True)
class Fit:
    """What the first batch says of memory.

    Attributes:
        rows: that make a batch, of that length.
        kv_bytes, untrimmed_kv_bytes: of the KV cache for each row, at its largest.
        untrimmed_rows: that would, if nothing were trimmed; None where memory is not the limit.
    """

    rows: int
    kv_bytes: int
    untrimmed_kv_bytes: int
    untrimmed_rows: int | None

    def __str__(self) -> str:
        if self.kv_bytes >= self.untrimmed_kv_bytes:
            return f"batches of {self.rows}"
        ratio = self.untrimmed_kv_bytes / max(1, self.kv_bytes)
        text = (
            f"batches of {self.rows}; KV cache {si(self.kv_bytes, 'B')} a row, untrimmed "
            f"{si(self.untrimmed_kv_bytes, 'B')}: {ratio:.1f} times as many rows in its memory"
        )
        if self.untrimmed_rows is None:
            return f"{text} (memory is not the limit here)"
        return f"{text}; untrimmed, batches would be of {self.untrimmed_rows}"


class Sizes:
    """Which batches fit.

    Args:
        model: from `st3.load`.
        most: rows, whatever fits; None: as `MOST` says.

    Attributes:
        most: rows of a batch.
        budget: rows times tokens, of prompt and answer; None while nothing is known.
    """

    def __init__(self, model: Any, most: int | None) -> None:
        self.device, self.asked = home(model), most
        self.most = most or MOST.get(self.device.type, MOST["cpu"])
        self.budget: float | None = None
        self._before = 0

    @property
    def rows(self) -> int:
        """Rows of the next batch at most."""
        return self.most if self.budget is not None else min(self.most, _PROBE)

    def fits(self, rows: int, tokens: int) -> bool:
        """Whether so many rows of so many tokens do."""
        return self.budget is None or rows * tokens <= self.budget

    def begin(self) -> None:
        """The first batch comes."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        else:
            self._before = psutil.Process().memory_info().rss

    def learn(self, rows: int, tokens: int, session: TrimSession | None, prompt: int) -> Fit | None:
        """What the first batch took, of `prompt` tokens and `tokens` with the longest answer.

        Returns:
            What that means; None where nothing was trimmed.
        """
        if self.device.type == "cuda":
            taken = torch.cuda.max_memory_allocated(self.device) - self._before
            idle = torch.cuda.memory_reserved(self.device) - self._before
            free = free_memory(self.device) + max(0, idle)
        else:
            taken, free = max(0, _peak() - self._before), free_memory(self.device)
        held = 0 if session is None else session.allocated_kv_bytes
        taken = max(taken, held, 1)
        self.budget = max(1.0, _SHARE * free / taken * rows) * tokens
        if session is None:
            return None
        plain = session.untrimmed_kv_bytes[0] * tokens // prompt
        limited = min(self.most, int(self.budget // tokens))
        without = None
        if limited < self.most:
            without = max(1, int(_SHARE * free / (taken - held + plain) * rows))
        return Fit(limited, held // rows, plain // rows, without)

    def shrink(self, rows: int, tokens: int) -> None:
        """So many rows of so many tokens did not fit: half of them may."""
        self.budget = min(self.budget or float("inf"), rows * tokens / 2)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _peak() -> int:
    """Bytes that this process has had at most; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
