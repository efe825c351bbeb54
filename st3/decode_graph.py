"""Decode steps without launch overhead: the decoder's step, recorded once as a CUDA graph.

A decode step of a 7B model launches some seven hundred kernels that take less time than their
launches. `DecodeGraph` stands in for the decoder's forward inside `trim`: at the first decode step
it turns the cache into one of static shapes (`st3.static_cache`), records the step, and from then
on copies one token's embedding in, replays, and copies the hidden state out. Where a step does not
fit the recording (a user's next turn, an observer), the cache is thawed and the step runs as usual.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPast

from st3.session import TrimSession
from st3.static_cache import Slots, StaticLayer


class DecodeGraphWarning(UserWarning):
    """CUDA graphs were asked for and cannot be had; the answer is the same, only later."""


def obstacle(device: torch.device, backend: str) -> str | None:
    """Why decode steps cannot be recorded here, or None if they can."""
    if device.type != "cuda":
        return f"CUDA graphs need a CUDA device, the model is on {device.type!r}"
    if backend.startswith("flash"):
        return f"{backend} takes no mask for static shapes: load the model with sdpa"
    return None


def record(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Run `step` to warm up, record it, and return what replays it.

    Raises:
        RuntimeError: something in it cannot be recorded.
    """
    with torch.cuda.device(device):
        before, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(before)
        try:
            with torch.cuda.stream(side):
                step()
                step()
            before.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # Other threads may allocate meanwhile.
            with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                step()
        except RuntimeError:
            torch.cuda.synchronize()
            raise
        finally:
            torch.cuda.set_stream(before)  # a capture that fails does not come back by itself
    replay: Callable[[], None] = graph.replay
    return replay


class DecodeGraph:
    """In place of `decoder.forward`; `prepare` is told of every step after a prefill beforehand.

    Attributes:
        recordings: how many steps have been recorded; `replays`: how many were replayed.
    """

    def __init__(self, session: TrimSession, decoder: Any, backend: str) -> None:
        self.session = session
        self.config = decoder.config
        self.forward: Any = decoder.forward
        self.recordings = self.replays = 0
        self.device = next(decoder.parameters()).device
        self.hindrance = obstacle(self.device, backend)
        if self.hindrance is not None:
            self._warn()
        self.forget()

    def forget(self) -> None:
        """A new prefill begins, or all is over: what was recorded belongs to the old cache."""
        self.slots: list[Slots] = []
        self.replay: Callable[[], None] | None = None
        self.active = False
        self.hidden = self.position = self.output = self.t = torch.empty(0)

    def prepare(self, tokens: int, kwargs: dict[str, Any]) -> None:
        """Decide, before annealing evicts, whether the coming decode step will be a replay."""
        t = self.session.generated + 1
        wanted = [
            getattr(self.config, name, False) if kwargs.get(name) is None else kwargs[name]
            for name in ("output_attentions", "output_hidden_states")
        ]
        self.active = (
            self.hindrance is None
            and tokens == 1
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled(self.device.type)
            and self.session.observer is None
            and not any(wanted)
        )
        if self.slots and not self.active:
            self._thaw()
        elif self.slots and t > min(slots.horizon for slots in self.slots):
            self._thaw(room=2 * t)
        if self.active and not self.slots:
            self._freeze()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The decoder's forward."""
        if not self.active:
            return self.forward(*args, **kwargs)
        cache: Any = self.session.cache
        hidden, position = kwargs["inputs_embeds"], kwargs.get("position_ids")
        if position is None:
            position = torch.full((1, 1), cache.get_seq_length(), device=self.device)
        if self.replay is None:
            self.hidden, self.position = hidden.clone(), position.clone()
            self.t = torch.full((1,), self.session.generated, device=self.device)
            try:
                self.replay = record(self._step, self.device)
            except RuntimeError as error:
                self.hindrance = f"the step could not be recorded ({str(error).splitlines()[0]})"
                self._warn()
                self.replay = self._step
            self.recordings += 1
        self.t.fill_(self.session.generated)
        self.hidden.copy_(hidden)
        self.position.copy_(position)
        self.replay()
        self.replays += 1
        for layer in cache.layers:
            layer.fed()
        return BaseModelOutputWithPast(
            last_hidden_state=self.output.clone(),
            past_key_values=cache,
        )

    def _step(self) -> None:
        for slots in self.slots:
            slots.place(self.t)
        self.output = self.forward(
            inputs_embeds=self.hidden,
            position_ids=self.position,
            past_key_values=self.session.cache,
            use_cache=True,
        ).last_hidden_state

    def _freeze(self) -> None:
        """Give every layer static shapes; a group shares its slots."""
        session = self.session
        assert session.cache is not None
        layers = session.cache.layers
        for group in session.groups:
            own = range(group.first - 1, group.last)
            for number in own:
                layers[number].slide()
                if layers[number].end == layers[number].keys.shape[2]:
                    layers[number].make_room(1)
            slots = Slots(
                layers[own[0]], session.schedule, group, session.visual_tokens, session.generated
            )
            self.slots.append(slots)
            for number in own:
                layers[number] = StaticLayer(layers[number], slots)

    def _thaw(self, room: int = 0) -> None:
        layers: Any = self.session.cache.layers  # type: ignore[union-attr]
        for number, layer in enumerate(layers):
            layers[number] = layer.thaw(room)
        active = self.active
        self.forget()
        self.active = active

    def _warn(self) -> None:
        message = f"decoding goes on without CUDA graphs: {self.hindrance}"
        warnings.warn(message, DecodeGraphWarning, stacklevel=5)
