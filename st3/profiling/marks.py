"""Marks of a clock on one `generate`: at each token, around the vision tower and the prefill."""

from __future__ import annotations

from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

from st3.profiling.clocks import Clock


class Marks(BaseStreamer):
    """A streamer, and hooks.

    The hooks on the decoder go when it has run once: a step that is compiled must not hold any.

    Args:
        clock: whose marks they are.

    Attributes:
        tokens: a mark for each.
        vision: before and after each pass of the vision tower.
        prefill: before and after the first pass of the decoder.
        choices: before and after tokens are chosen or dropped.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.tokens: list[Any] = []
        self.vision: list[Any] = []
        self.prefill: list[Any] = []
        self.choices: list[Any] = []
        self._handles: list[Any] = []
        self._prompt_seen = False

    def hang(self, tower: Any, decoder: Any) -> None:
        """Hang the hooks, around those of `trim`, so that its work is inside the marks."""
        self._handles += [
            tower.register_forward_pre_hook(self._see_vision),
            tower.register_forward_hook(self._see_vision),
            decoder.register_forward_pre_hook(self._enter_decoder, prepend=True),
            decoder.register_forward_hook(self._leave_decoder),
        ]

    def put(self, value: torch.Tensor) -> None:
        """The prompt, then each token."""
        if self._prompt_seen:
            self.tokens.append(self.clock.mark())
        self._prompt_seen = True

    def end(self) -> None:
        """Nothing more is to be noted."""

    def see_choice(self) -> None:
        """For `TrimSession.mark`."""
        self.choices.append(self.clock.mark())

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def _see_vision(self, *_: Any) -> None:
        self.vision.append(self.clock.mark())

    def _enter_decoder(self, *_: Any) -> None:
        self.prefill.append(self.clock.mark())

    def _leave_decoder(self, *_: Any) -> None:
        self.prefill.append(self.clock.mark())
        self.remove()
