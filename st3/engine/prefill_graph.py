"""Prefill without launch overhead, where many prompts have one layout: recorded as a CUDA graph.

At batch 1 a large GPU waits for the launches of prefill longer than it computes. When a layout of
prompt comes for the third time in a row within a `trim` (the same question about other pictures),
its prefill is recorded, and from then on replayed: the choice of tokens, the cuts and the filling
of the cache are all work for the device, at the same addresses each time. What Python notes down on
the way, in the session and in the cache's layers, is put back from a copy.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from st3.engine import recording
from st3.engine.alive import Alive
from st3.engine.attention import NO_MASK
from st3.engine.bringing import bring
from st3.engine.cache import TrimmedCache
from st3.engine.cache_layer import TrimmedLayer
from st3.engine.forward import Forward
from st3.engine.positions import spread, spread_output
from st3.engine.prompt import Prompt
from st3.engine.record import Record
from st3.engine.session import TrimSession

_MOST = 4096
"""Tokens of a batch of prompts up to which launching is what takes time."""
_SEEN = 2
"""Prefills of one layout before it is recorded, which takes as long as three."""


@dataclass
class _Recorded:
    """One layout's prefill: what goes in, what comes out, and what Python noted down."""

    hidden: torch.Tensor
    position: torch.Tensor | None
    visual: torch.Tensor
    output: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    kind: Any = None
    record: Record | None = None
    layers: list[TrimmedLayer] = field(default_factory=list)
    alive: Alive | None = None
    replay: Callable[[], None] | None = None


class PrefillGraph:
    """Replays a prefill, or leaves it to the decoder.

    Args:
        session: of the `trim`.
        forward: the decoder's.
        device: of the decoder.

    Attributes:
        active: whether the coming prefill will be recorded or replayed.
        recordings, replays: how many there were.
    """

    def __init__(
        self, session: TrimSession, forward: Callable[..., Any], device: torch.device
    ) -> None:
        self.session, self.forward, self.device = session, forward, device
        self.recordings = self.replays = 0
        self._failed = False
        self.forget()

    def forget(self) -> None:
        """All is over: let everything go."""
        self.active = False
        self._layout: tuple[Any, ...] = ()
        self._seen = 0
        self._recorded: _Recorded | None = None
        self._begin: Callable[[torch.Tensor], Forward] | None = None
        self._visual = torch.empty(0)

    def prepare(
        self,
        prompt: Prompt,
        visual: torch.Tensor,
        kwargs: dict[str, Any],
        begin: Callable[[torch.Tensor], Forward],
    ) -> bool:
        """Decide whether the prefill that `kwargs` of the decoder ask for goes through here.

        Args:
            prompt: its layout.
            visual: bool [B, n].
            kwargs: of the decoder's forward.
            begin: starts a generation from `visual`; called here if so.
        """
        hidden = kwargs["inputs_embeds"]
        position = kwargs.get("position_ids")
        place = None if position is None else position.shape
        layout = prompt, hidden.shape, hidden.dtype, place, torch.is_inference_mode_enabled()
        even = prompt.full and len({*prompt.visual}) == 1
        if layout != self._layout:
            self._recorded = None  # its activations and buffers are in the way of others
            self._layout, self._seen = layout, 0
        self._seen += 1
        small = hidden.shape[:2].numel() <= _MOST
        self.active = self._seen > _SEEN and even and small and not self._failed
        self._begin, self._visual = begin, visual
        return self.active

    def __call__(self, kwargs: dict[str, Any]) -> Any:
        """The decoder's forward."""
        self.active = False
        hidden, position = kwargs["inputs_embeds"], kwargs.get("position_ids")
        assert self._begin is not None
        if self._recorded is None:
            own = None if position is None else position.clone()
            found = _Recorded(hidden.clone(), own, self._visual.clone())
            try:
                self._record(found)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self._failed = True
                recording.warn(f"prefill is not recorded: {recording.first_line(error)}")
                forward = self._begin(self._visual)
                assert forward.prefill is not None
                brought = {"inputs_embeds": bring(forward.prefill, hidden)}
                output = self.forward(**kwargs | brought | forward.arguments())
                return spread_output(output, forward.prefill)
            self._recorded = found
        recorded = self._recorded
        assert recorded.replay is not None
        recorded.hidden.copy_(hidden)
        recorded.visual.copy_(self._visual)
        if recorded.position is not None:
            recorded.position.copy_(position)  # type: ignore[arg-type]
        recorded.replay()
        self.replays += 1
        layers = [copy.copy(layer) for layer in recorded.layers]
        own = kwargs.get("past_key_values")
        self.session.retire(own)
        cache = TrimmedCache.in_place_of(own, layers)
        assert recorded.record is not None
        assert recorded.alive is not None
        self.session.begin(recorded.record.replayed(cache), cache)
        return recorded.kind(
            last_hidden_state=spread(recorded.output.clone(), recorded.alive),
            past_key_values=cache,
        )

    def _record(self, recorded: _Recorded) -> None:
        begin = self._begin
        assert begin is not None

        def step() -> None:
            forward = begin(recorded.visual)
            assert forward.prefill is not None
            output = self.forward(
                inputs_embeds=bring(forward.prefill, recorded.hidden),
                position_ids=recorded.position,
                use_cache=True,
                attention_mask=NO_MASK,
                **forward.arguments(),
            )
            recorded.output, recorded.kind = output.last_hidden_state, type(output)
            recorded.alive = forward.prefill.alive()

        began = time.perf_counter()
        recorded.replay = recording.record(step, self.device)
        self.session.recording_seconds += time.perf_counter() - began
        self.recordings += 1
        record, cache = self.session.last, self.session.last_cache
        assert cache is not None
        recorded.record = record.replayed(cache)
        recorded.layers = [copy.copy(layer) for layer in cache.layers]
