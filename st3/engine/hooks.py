"""The hooks of a trimmed model: they find out whose call it is, and hand that a `Forward`.

They are on the model while any `trim` of it is open, once, and keep nothing of a generation:

- before pictures are merged into text: which tokens are visual;
- before the decoder: a prefill gets a `TrimmedCache`, a later forward lets annealing evict;
- before each layer: hidden states and position embeddings are gathered down to what it keeps;
- after the decoder: what it returns is put back to the positions of its input.

Each decoder module gets a copy of its configuration that names our attention function; the model's
own is not touched, and may be another model's too.
"""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass
from inspect import unwrap
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, GenerationMixin

from st3.engine.attention import FORWARD, backend_of, trimmed_config
from st3.engine.cache import TrimmedCache
from st3.engine.cache_layer import TrimmedLayer
from st3.engine.decode_graph import DecodeGraph
from st3.engine.forward import Forward
from st3.engine.positions import spread_output
from st3.engine.prefill import Prefill
from st3.engine.prompt import layout
from st3.engine.record import Record
from st3.engine.scope import Scope, whose_call
from st3.engine.session import TrimSession
from st3.families.base import Adapter, visual_mask

_PICTURES = ("pixel_values", "image_features", "inputs_embeds", "mm_encoder_outputs")
"""Arguments that bring what visual tokens stand for."""
_GRAPH = "st3_graph"
_GENERATE = unwrap(GenerationMixin.generate).__code__


class Trim(Scope):
    """One open `with st3.trim(...)`."""

    def __init__(self, session: TrimSession) -> None:
        super().__init__()
        self.session = session
        self.graph: DecodeGraph | None = None


@dataclass(frozen=True)
class _Seen:
    """What the module that merges pictures into text was called with."""

    visual: torch.Tensor | None
    pictured: bool


class Hooks:
    """All that is ours in a live model.

    Args:
        model: the model.
        adapter: of its family.
    """

    def __init__(self, model: Any, adapter: Adapter) -> None:
        self.model, self.adapter = model, adapter
        self.decoder: Any = adapter.decoder(model)
        self.backend = backend_of(self.decoder.config)
        self.trims: list[Trim] = []
        layers: Any = self.decoder.layers
        self._layers = set(layers)
        self._here = threading.local()
        self._own_forward = vars(self.decoder).get("forward")
        self._handles: list[Any] = []
        self._configured: list[tuple[nn.Module, Any]] = []

    def __deepcopy__(self, memo: Any) -> Hooks:
        """A copy of the model takes these hooks along, which do nothing in modules not theirs."""
        return self

    def install(self) -> None:
        """Put the hooks on, and our attention in place."""
        merger, decoder = self.adapter.merger(self.model), self.decoder
        before = decoder.config
        trimmed = trimmed_config(before, self.backend)
        for module in decoder.modules():
            if getattr(module, "config", None) is before:
                self._configured.append((module, before))
                module.config = trimmed
        self._handles = [
            merger.register_forward_pre_hook(self.see_tokens, with_kwargs=True),
            merger.register_forward_hook(self.forget_tokens, always_call=True),
            decoder.register_forward_pre_hook(self.enter, with_kwargs=True),
            decoder.register_forward_hook(self.leave, with_kwargs=True, always_call=True),
        ]
        for layer in decoder.layers:
            self._handles += [layer.register_forward_pre_hook(self.enter_layer, with_kwargs=True)]

    def remove(self) -> None:
        """Leave the model as it was."""
        for handle in self._handles:
            handle.remove()
        for module, config in self._configured:
            module.config = config
        if isinstance(vars(self.decoder).get("forward"), _Replayed):
            del self.decoder.forward
            if self._own_forward is not None:
                self.decoder.forward = self._own_forward

    def replay(self, trim: Trim, cuda_graphs: bool, compiler: str) -> None:
        """Let the decode steps of a `trim` be recorded, compiled, or both."""
        held = vars(self.decoder).get("forward")
        forward = held.forward if isinstance(held, _Replayed) else self.decoder.forward
        trim.graph = DecodeGraph(
            trim.session, self.decoder, forward, self.backend,
            cuda_graphs=cuda_graphs, compiler=compiler,
        )  # fmt: skip
        if not isinstance(held, _Replayed):
            self.decoder.forward = _Replayed(forward)

    def see_tokens(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Before pictures are merged into the text: remember which tokens are visual."""
        input_ids = kwargs.get("input_ids", args[0] if args else None)
        # transformers 5.23 encodes pictures beforehand, and hands on an empty dict where are none.
        brought = (kwargs.get(name) for name in _PICTURES)
        pictured = len(args) > 1 or any(
            bool(x) if isinstance(x, dict) else x is not None for x in brought
        )
        visual = None
        if input_ids is not None:
            visual = visual_mask(self.adapter, self.model, input_ids)
        self._here.seen = _Seen(visual, pictured)

    def forget_tokens(self, module: nn.Module, args: Any, output: Any) -> None:
        """After it, also where it failed."""
        self._here.seen = None

    def enter(self, module: Any, args: Any, kwargs: Any) -> Any:
        """Before the decoder: begin a prefill, go on with a generation, or leave a call alone."""
        if module is not self.decoder:
            return None
        cache = kwargs.get("past_key_values")
        trim, record = self._generation(cache)
        if trim is None:
            return None
        if trim.graph is None:
            return args, self._enter(trim, record, kwargs)
        trim.graph.take()
        try:
            return args, self._enter(trim, record, kwargs) | {_GRAPH: trim.graph}
        except BaseException:
            trim.graph.release()
            raise

    def enter_layer(self, module: Any, args: Any, kwargs: Any) -> Any:
        """Before a layer: at prefill, gather the tokens that its group keeps."""
        forward: Forward | None = kwargs.get(FORWARD)
        if forward is None or forward.prefill is None or module not in self._layers:
            return None
        number = module.self_attn.layer_idx + 1
        if args:
            return (forward.enter_layer(number, args[0], kwargs), *args[1:]), kwargs
        kwargs["hidden_states"] = forward.enter_layer(number, kwargs["hidden_states"], kwargs)
        return args, kwargs

    def leave(self, module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        """After the decoder: hidden states go back to the positions of the input."""
        graph: DecodeGraph | None = kwargs.get(_GRAPH)
        if graph is not None:
            graph.release()
        forward: Forward | None = kwargs.get(FORWARD)
        if module is not self.decoder or output is None:
            return None
        if forward is None or forward.prefill is None:
            return None
        return spread_output(output, forward.prefill)

    def _generation(self, cache: Any) -> tuple[Trim | None, Record | None]:
        """Whose forward this is, and which generation goes on, None where one begins."""
        for trim in self.trims:
            record = trim.session.record_of(cache)
            if record is not None and cache.closed is None:
                return trim, record
        return whose_call(self.trims), None

    def _enter(self, trim: Trim, record: Record | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The decoder's arguments."""
        if record is None:
            return self._begin(trim, kwargs)
        return kwargs | self._go_on(trim, record, kwargs).arguments()

    def _go_on(self, trim: Trim, record: Record, kwargs: dict[str, Any]) -> Forward:
        """A decode step, or a user's next turn."""
        mask, tokens = _mask(kwargs), kwargs["inputs_embeds"].shape[1]
        if tokens > 1:
            seen: _Seen | None = getattr(self._here, "seen", None)
            if seen is not None and seen.visual is not None and bool(seen.visual.any()):
                raise ValueError("st3 needs every picture of a conversation in its first forward")
            if mask is not None and not bool(mask[:, -tokens:].all()):
                raise ValueError(
                    "st3 cannot take padding in a later turn: feed the rows one by one"
                )
        forward = Forward(trim.session, record, self.backend, kwargs["past_key_values"])
        if trim.graph is not None:
            trim.graph.prepare(tokens, kwargs, forward)
        record.step(tokens)
        return forward

    def _begin(self, trim: Trim, kwargs: dict[str, Any]) -> dict[str, Any]:
        """A prefill; returns the decoder's arguments."""
        session, graph = trim.session, trim.graph
        cache, mask = kwargs.get("past_key_values"), _mask(kwargs)
        seen: _Seen | None = getattr(self._here, "seen", None)
        _check_cache(cache)
        if seen is None or seen.visual is None:
            raise ValueError("st3.trim needs input_ids to know which tokens are visual")
        if _in_chunks():
            raise ValueError(
                "st3 needs the whole prompt to choose what to drop: leave prefill_chunk_size unset"
            )
        prompt = layout(seen.visual if mask is None else seen.visual & mask.bool(), mask)
        if any(prompt.visual) and not seen.pictured:
            raise ValueError(
                f"the prompt has places for {max(prompt.visual)} visual tokens, and nothing to put "
                "there: give pixel_values"
            )
        visual = seen.visual if mask is None else seen.visual & mask.bool()
        own = None if prompt.full else mask  # a recording must read no mask of one call
        use_cache = kwargs.get("use_cache")
        if use_cache is None:
            use_cache = self.decoder.config.use_cache

        def begin(visual: torch.Tensor) -> Forward:
            new, old = None, session.last_cache
            if use_cache:
                fresh = [TrimmedLayer() for _ in range(session.layers)]
                if graph is not None:
                    graph.reuse(fresh, old.layers if old is not None else [])
                new = TrimmedCache.in_place_of(cache, fresh)
            if graph is not None:
                session.retire(new)
            record = Record(session.plan, prompt, visual, own, new)
            session.begin(record, new)
            return Forward(session, record, self.backend, new, Prefill(record, visual, own, new))

        if graph is not None:
            graph.rest()
            wanted = use_cache and graph.takes_prefill(kwargs)
            if wanted and graph.prefill.prepare(prompt, visual, kwargs, begin):
                return kwargs
        return kwargs | begin(visual).arguments()


class _Replayed:
    """In the place of a decoder's forward, where a `trim` records or compiles."""

    def __init__(self, forward: Any) -> None:
        self.forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        graph: DecodeGraph | None = kwargs.pop(_GRAPH, None)
        return (self.forward if graph is None else graph)(*args, **kwargs)


def _mask(kwargs: dict[str, Any]) -> torch.Tensor | None:
    mask: torch.Tensor | None = kwargs.get("attention_mask")
    if mask is not None and mask.dim() != 2:
        raise ValueError(f"st3.trim needs a mask [batch, tokens], got a {mask.dim()}-D one")
    return mask


def _check_cache(cache: Any) -> None:
    """Refuse a cache that a prefill cannot take the place of."""
    if cache is None:
        return
    empty = isinstance(cache, DynamicCache) and not cache.get_seq_length()
    if not empty or getattr(cache, "offloading", False):
        why = cache.closed if isinstance(cache, TrimmedCache) else None
        raise ValueError(
            why
            or f"st3.trim brings its own KV cache and cannot go on from a {type(cache).__name__}: "
            "start with the whole prompt, a new DynamicCache() or none, and cache_implementation "
            "unset"
        )


def _in_chunks() -> bool:
    """Whether the `generate` that calls us feeds the prompt piece by piece.

    It tells no forward so: the setting can only be read where `generate` keeps it.
    """
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code is not _GENERATE:
        frame = frame.f_back
    setting = frame.f_locals.get("generation_config") if frame.f_code is _GENERATE else None
    return getattr(setting, "prefill_chunk_size", None) is not None
