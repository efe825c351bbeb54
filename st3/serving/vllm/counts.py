"""How many rows of pictures a prompt had and keeps: vLLM's outputs do not say. No vLLM here."""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass(frozen=True)
class Seen:
    """Rows of all pictures of a prompt, and how many of them stay."""

    rows: int = 0
    kept: int = 0


class _Last(threading.local):
    """Of the prompt that this thread made ready last."""

    seen = Seen()

    def note(self, rows: int, kept: int) -> None:
        """By the processor."""
        self.seen = Seen(rows, kept)

    def take(self) -> Seen:
        """By whoever handed the prompt in."""
        seen, self.seen = self.seen, Seen()
        return seen


SEEN = _Last()
