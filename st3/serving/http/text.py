"""The text of an answer as it may be sent: without space around it, and up to a stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class Outlet:
    """Lets text through as soon as nothing that may follow could take it back.

    Args:
        on_text: gets it piece by piece.
        stops: texts before which the answer ends.

    Attributes:
        stopped: whether one of them came; from then on nothing is let through.
        text: all that was.
    """

    def __init__(self, on_text: Callable[[str], None], stops: Sequence[str] = ()) -> None:
        self.on_text, self.stops = on_text, stops
        self.stopped, self.text = False, ""
        self._held = ""

    def put(self, piece: str) -> None:
        """More text."""
        if self.stopped:
            return
        self._held += piece
        found = [place for stop in self.stops if (place := self._held.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, self._held[: min(found)]
        safe = len(self._held) if self.stopped else self._safe()
        self._send(len(self._held[:safe].rstrip()))

    def end(self) -> None:
        """No more comes: what looked like the beginning of a stop was none."""
        if not self.stopped:
            self._send(len(self._held.rstrip()))

    def _send(self, length: int) -> None:
        piece, self._held = self._held[:length], self._held[length:]
        if not self.text:  # no sooner: a stop may begin with space
            piece = piece.lstrip()
        if piece:
            self.text += piece
            self.on_text(piece)

    def _safe(self) -> int:
        """Characters that begin no stop."""
        held = self._held
        for start in range(len(held)):
            if any(stop.startswith(held[start:]) for stop in self.stops):
                return start
        return len(held)
