"""Decode steps without launch overhead: the decoder's step, recorded once as a CUDA graph.

A decode step of a 7B model launches fifteen hundred kernels that take less time than their
launches. `DecodeGraph` stands in for the decoder's forward inside `trim`: at the first decode step
it turns the cache into one of static shapes (`st3.engine.static_cache`), records the step, and from
then on copies one token's embedding in, replays, and copies the hidden state out, also in
generations to come whose buffers are as large. Where a step does not fit the recording (a user's
next turn, an observer), the cache is thawed and the step runs as usual. With `compiler` the step is
compiled first: fewer and larger kernels, and on a CPU, where nothing is recorded, the compiled step
alone.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn

from st3.engine import recording as recorder
from st3.engine.attention import NO_MASK
from st3.engine.cache_layer import TrimmedLayer
from st3.engine.compilers import StepCompiler
from st3.engine.forward import Forward
from st3.engine.kernels import without_plans
from st3.engine.linears import fast_linears
from st3.engine.prefill_graph import PrefillGraph
from st3.engine.recorded_step import RecordedStep
from st3.engine.session import TrimSession
from st3.engine.static_cache import StaticLayer
from st3.families.parts import Parts, devices

_SLOTS = 64  # buffers grow by so many: prompts of about one length share a recording
_UNASKED = "not asked for"


class DecodeGraph:
    """In place of `decoder.forward`; `prepare` is told of every step after a prefill beforehand.

    A recording serves every later generation of the same `trim` whose buffers are as large; they
    then are the same ones, see `reuse`.

    Args:
        session: of the `trim`.
        parts: of the model; `forward`: its decoder's own.
        backend: its attention implementation.
        cuda_graphs: record.
        compiler: of the step, one of `st3.engine.compilers.COMPILERS`.

    Attributes:
        prefill: does the same for prefill.
        recordings: how many steps have been recorded; `replays`: how many were replayed.
    """

    def __init__(
        self,
        session: TrimSession,
        parts: Parts,
        forward: Callable[..., Any],
        backend: str,
        *,
        cuda_graphs: bool,
        compiler: str,
    ) -> None:
        self.session = session
        self.config = parts.decoder.config
        self.forward: Any = forward
        self._taken: threading.Thread | None = None
        self.recordings = self.replays = 0
        weight, lies = next(parts.decoder.parameters()), devices(parts.decoder)
        self.device, self.dtype = weight.device, weight.dtype
        self.prefill = PrefillGraph(session, self.forward, self.device)
        self.hindrance = None
        if backend.startswith("flash"):
            self.hindrance = f"{backend} takes no mask for static shapes: load the model with sdpa"
        if not parts.plain or parts.merger is parts.decoder:
            self.hindrance = "this model has layers that see a window, keep a state or borrow keys"
        if len(lies) > 1 or self.device.type == "meta":
            self.hindrance = "this model's layers lie on several devices, or are offloaded"
        if session.plan.ranks is not None:
            self.hindrance = "a tensor-parallel model's steps wait for other processes"
        self.cannot_record = recorder.obstacle(self.device) if cuda_graphs else _UNASKED
        wanted = compiler if self.hindrance is None else "off"
        self.compiler = StepCompiler(wanted, forward, parts.decoder)
        if self.compiled is None and self.hindrance is None:
            self.hindrance = self.cannot_record  # static shapes alone gain nothing
        if self.hindrance not in (None, _UNASKED):
            missed = "CUDA graphs" if cuda_graphs else "a compiled step"
            recorder.warn(f"decoding goes on without {missed}: {self.hindrance}")
        self.forget()

    def forget(self) -> None:
        """All is over, or the recording fits nothing any more."""
        self.recording: RecordedStep | None = None
        self.step: Forward | None = None  # one object for all steps: compilers look at it
        self.active = False
        self.prefill.forget()

    def take(self) -> None:
        """A forward begins: recordings have room for one at a time.

        Raises:
            RuntimeError: another thread is in the middle of one.
        """
        thread, taken = threading.current_thread(), self._taken
        if taken not in (None, thread) and taken.is_alive():
            raise RuntimeError(
                "with cuda_graphs or compile one thread generates at a time: open an st3.trim "
                "in each thread"
            )
        self._taken = thread

    def release(self) -> None:
        """The forward is over."""
        self._taken = None

    def rest(self) -> None:
        """A prefill begins: whatever was to come is off."""
        self.active = self.prefill.active = False
        if self.by_layers:
            self.compiled.look_again()

    def reuse(self, fresh: Sequence[TrimmedLayer], old: Sequence[TrimmedLayer]) -> None:
        """A prefill begins, into `fresh` layers: let it fill the buffers of old ones, if they fit.

        Prompts of other lengths share buffers, and so a recording, in steps of 64 slots.
        """
        for layer in fresh:
            layer.step = _SLOTS
        if self.recording is not None:
            for layer, before in zip(fresh, old, strict=False):
                layer.spare = before.keys, before.values
                layer.room = max(layer.room, before.room)

    def prepare(self, tokens: int, kwargs: dict[str, Any], forward: Forward) -> None:
        """Decide, before annealing evicts, whether the coming decode step will be a replay."""
        if self.step is None:
            self.step = copy.copy(forward)
        self.step.record, self.step.cache = forward.record, forward.cache
        t = forward.record.generated + 1
        self.active = tokens == 1 and len(forward.record.turns) == 1 and self._plain(kwargs)
        if self.frozen and not self.active:
            self._thaw()
        elif self.frozen and self.recording is not None and t > self.recording.horizon:
            self._thaw(room=2 * t)
        if self.active and not self.frozen:
            self._freeze()

    def takes_prefill(self, kwargs: dict[str, Any]) -> bool:
        """Whether the coming prefill may go through `prefill`, if that finds that it fits."""
        return self.cannot_record is None and self._plain(kwargs)

    def _plain(self, kwargs: dict[str, Any]) -> bool:
        """Whether nothing is asked of a forward that a recording leaves out."""
        wanted = [
            getattr(self.config, name, False) if kwargs.get(name) is None else kwargs[name]
            for name in ("output_attentions", "output_hidden_states", "output_router_logits")
        ]
        return (
            self.hindrance is None
            and recorder.bare(self.device)
            and self.session.observer is None
            and not any(wanted)
        )

    @property
    def frozen(self) -> bool:
        """Whether the cache of the coming step has static shapes."""
        cache = None if self.step is None else self.step.cache
        return cache is not None and any(isinstance(x, StaticLayer) for x in cache.layers)

    @property
    def compiled(self) -> Any:
        """The compiled forward, None without one."""
        return None if self.hindrance else self.compiler.run

    @property
    def by_layers(self) -> bool:
        """Whether layers are compiled one by one."""
        return self.compiled is not None and self.compiler.by_layers

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The decoder's forward."""
        if self.prefill.active:
            return self.prefill(kwargs)
        if not self.active:
            faster = self.compiled is not None and recorder.bare(self.device)
            with fast_linears(self.device, self.dtype) if faster else nullcontext():
                return self.forward(*args, **kwargs)
        recording, step = self.recording, self.step
        assert recording is not None
        assert step is not None
        assert step.cache is not None
        cache, generated = step.cache, step.record.generated
        hidden, position = kwargs["inputs_embeds"], kwargs.get("position_ids")
        if position is None:
            position = torch.full((1, 1), cache.get_seq_length(), device=self.device)
        if not recording.feed(hidden, position, generated):
            recording.replay = self._make_replay(recording)
            self.recordings += 1
        assert recording.replay is not None
        recording.replay()
        self.replays += 1
        layers: Any = cache.layers
        for layer in layers:
            layer.fed()
        return recording.kind(last_hidden_state=recording.output.clone(), past_key_values=cache)

    def head(self, module: nn.Module, hidden: torch.Tensor) -> torch.Tensor | None:
        """Logits of one token of each row by compiled code, where steps have some; else None."""
        tried = self.active or self.recordings > 0  # a prefill's, once a step has been compiled
        one = tried and self.by_layers and hidden.shape[1:2] == (1,)
        return self.compiled.head(module, hidden) if one and recorder.bare(self.device) else None

    def _make_replay(self, recording: RecordedStep) -> Callable[[], None]:
        """Compile and record what can be; what cannot is left out with a warning."""
        began = time.perf_counter()
        try:
            if self.compiled is not None:
                self.compiler.try_out(partial(self._step, recording))
                if self.compiled is None:
                    self.hindrance = self.cannot_record
            step = partial(self._step, recording, self.compiled or self.forward)
            if self.by_layers:
                step = partial(self._step_by_layers, recording)
            if self.cannot_record is None:
                return recorder.record(step, self.device)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.hindrance = f"the step could not be recorded ({recorder.first_line(error)})"
            recorder.warn(f"decoding goes on without CUDA graphs: {self.hindrance}")
        finally:
            self.session.recording_seconds += time.perf_counter() - began
        return step

    def _step_by_layers(self, recording: RecordedStep) -> None:
        """A step in which layers may be compiled anew; where that fails, it runs once more."""
        if self.by_layers:
            try:
                return self._step(recording, self.compiled)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                self.compiler.give_up(error)
                self.hindrance = self.cannot_record
        return self._step(recording, self.forward)

    def _step(self, recording: RecordedStep, forward: Callable[..., Any]) -> None:
        for slots in recording.slots:
            slots.place(recording.t)
        assert self.step is not None
        with without_plans():
            output = forward(
                inputs_embeds=recording.hidden,
                position_ids=recording.position,
                use_cache=True,
                attention_mask=NO_MASK,
                **self.step.arguments(),
            )
        recording.output, recording.kind = output.last_hidden_state, type(output)

    def _freeze(self) -> None:
        """Give every layer static shapes; a group shares its slots."""
        assert self.step is not None
        assert self.step.cache is not None
        record, layers = self.step.record, self.step.cache.layers
        plan, turn = record.plan, record.turns[0]
        for layer in layers:
            layer.slide()
            if layer.end == layer.keys.shape[2]:
                layer.make_room(1)
        if self.recording is None or not self.recording.fits(layers):
            self.recording = RecordedStep(layers, plan.groups)
        for group, slot in zip(plan.groups, self.recording.slots, strict=True):
            first = layers[group.first - 1]
            slot.fill(first, turn.schedule, group, turn.entering, record.generated)
            for number in range(group.first - 1, group.last):
                layers[number] = StaticLayer(layers[number], slot)

    def _thaw(self, room: int = 0) -> None:
        layers: Any = self.step.cache.layers  # type: ignore[union-attr]
        for number, layer in enumerate(layers):
            layers[number] = layer.thaw(room)
