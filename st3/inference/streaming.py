"""Text of an answer while it comes, and an answer that ends when somebody wants it to."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

_CONTEXT = 16  # tokens behind which the next is decoded


class Streamer(BaseStreamer):
    """Hands text on as it becomes certain, and notes when each token came.

    All pieces together are what the tokenizer makes of all tokens at once: a token is decoded
    behind some before it, since what it adds may depend on them.

    Args:
        tokenizer: of the model.
        on_text: gets the text piece by piece.
    """

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None] | None) -> None:
        self.tokenizer, self.on_text = tokenizer, on_text
        self.times: list[float] = []
        self._prompt = True
        self._tokens: list[int] = []  # the last ones
        self._said = ""  # of their text

    def put(self, value: torch.Tensor) -> None:
        """The prompt first, then token by token."""
        if self._prompt:
            self._prompt = False
            return
        self.times.append(time.perf_counter())
        if self.on_text is not None:
            self._tokens += value.flatten().tolist()
            self._say(self._text())

    def end(self) -> None:
        """What was half a letter stays one."""
        if self.on_text is not None:
            self._say(self._text(), whole=True)

    def _text(self) -> str:
        return str(self.tokenizer.decode(self._tokens, skip_special_tokens=True))

    def _say(self, text: str, whole: bool = False) -> None:
        """What is new in it, but for bytes that are no letter yet."""
        if self.on_text is None or (text.endswith("\N{REPLACEMENT CHARACTER}") and not whole):
            return
        if len(text) > len(self._said):
            self.on_text(text[len(self._said) :])
        self._said = text
        if len(self._tokens) > 2 * _CONTEXT:
            self._tokens = self._tokens[-_CONTEXT:]
            self._said = self._text()


class Stop(StoppingCriteria):
    """Ends a generation when asked to.

    Args:
        stop: asked after each token.
    """

    def __init__(self, stop: Callable[[], bool]) -> None:
        self.stop = stop

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> Any:
        """All rows at once."""
        return torch.full((len(input_ids),), self.stop(), device=input_ids.device)
