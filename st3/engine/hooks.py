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

import threading
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from st3.engine.asked import (
    brings_pictures,
    check_cache,
    check_pictured,
    check_turn,
    fed_tokens,
    in_chunks,
    padding_mask,
    take_features,
    unpadded,
)
from st3.engine.attention import FORWARD, ask_for_rules, backend_of, trimmed_configs
from st3.engine.cache import TrimmedCache
from st3.engine.decode_graph import DecodeGraph
from st3.engine.follow import Features
from st3.engine.forward import Forward
from st3.engine.positions import spread_output
from st3.engine.prefill import Prefill
from st3.engine.prompt import layout
from st3.engine.record import Record
from st3.engine.scope import Scope, whose_call
from st3.engine.session import TrimSession
from st3.engine.window_layer import layer_for
from st3.families.base import visual_mask
from st3.families.parts import Parts, argument_names

_GRAPH = "st3_graph"


class Trim(Scope):
    """One open `with st3.trim(...)`."""

    def __init__(self, session: TrimSession) -> None:
        super().__init__()
        self.session = session
        self.graph: DecodeGraph | None = None


@dataclass(frozen=True)
class _Seen:
    """What the module that merges pictures into text was called with.

    Attributes:
        visual: bool [B, n], which tokens are visual; None without `input_ids`.
        mask: [B, tokens so far] or None, the attention mask.
        pictured: whether pictures came along.
    """

    visual: torch.Tensor | None
    mask: torch.Tensor | None
    pictured: bool


_NOTHING = _Seen(None, None, pictured=False)


class Hooks:
    """All that is ours in a live model.

    Args:
        parts: of the model.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.decoder = parts.decoder
        self.backend = backend_of(self.decoder.config)
        self.trims: list[Trim] = []
        self._numbers = {layer: number for number, layer in enumerate(parts.layers, 1)}
        self._here = threading.local()
        self._own_forward = vars(self.decoder).get("forward")
        self._handles: list[Any] = []
        self._configured: list[tuple[nn.Module, Any]] = []

    def __deepcopy__(self, memo: Any) -> Hooks:
        """A copy of the model takes these hooks along, which do nothing in modules not theirs."""
        return self

    def install(self) -> None:
        """Put the hooks on, and our attention in place."""
        merger, decoder = self.parts.merger, self.decoder
        for module, config in trimmed_configs(merger, decoder, self.backend):
            self._configured.append((module, module.config))
            module.config = config
        self._handles = [
            merger.register_forward_pre_hook(self.see_tokens, with_kwargs=True),
            merger.register_forward_hook(self.forget_tokens, always_call=True),
            decoder.register_forward_pre_hook(self.enter, with_kwargs=True),
            decoder.register_forward_hook(self.leave, with_kwargs=True, always_call=True),
        ]
        for layer in self.parts.layers:
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
            trim.session, self.parts, forward, self.backend,
            cuda_graphs=cuda_graphs, compiler=compiler,
        )  # fmt: skip
        if not isinstance(held, _Replayed):
            self.decoder.forward = _Replayed(forward)

    def see_tokens(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Before pictures are merged into the text: remember which tokens are visual."""
        ids, mask = kwargs.get("input_ids", args[0] if args else None), kwargs.get("attention_mask")
        visual = None if ids is None else visual_mask(self.parts.visual_ids, ids)
        self._here.seen = _Seen(visual, mask, brings_pictures(args, kwargs))
        if module is self.parts.merger:  # some make the masks there
            ask_for_rules(self._generation(kwargs.get("past_key_values"))[0] is not None)

    def forget_tokens(self, module: nn.Module, args: Any, output: Any) -> None:
        """After it, also where it failed."""
        self._here.seen = None
        ask_for_rules(wanted=False)

    def enter(self, module: Any, args: Any, kwargs: Any) -> Any:
        """Before the decoder: begin a prefill, go on with a generation, or leave a call alone."""
        if module is not self.decoder:
            return None
        cache = kwargs.get("past_key_values")
        trim, record = self._generation(cache)
        ask_for_rules(trim is not None)
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
        """Before a layer: at prefill, gather what belongs to the tokens that it keeps."""
        forward: Forward | None = kwargs.get(FORWARD)
        if forward is None or forward.prefill is None or module not in self._numbers:
            return None
        named = dict(zip(argument_names(type(module).forward), args, strict=False)) | kwargs
        named = forward.enter_layer(self._numbers[module], named)
        # transformers' recorder of hidden states looks for the first argument.
        return (named.pop("hidden_states"),), named

    def leave(self, module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        """After the decoder: hidden states go back to the positions of the input."""
        ask_for_rules(wanted=False)
        graph: DecodeGraph | None = kwargs.get(_GRAPH)
        if graph is not None:
            graph.release()
        forward: Forward | None = kwargs.get(FORWARD)
        if module is not self.decoder or output is None:
            return None
        if forward is None or forward.prefill is None:
            return None
        if forward.prefill.unseen:
            raise RuntimeError(
                f"layer {min(forward.prefill.unseen)} of the decoder did not call attention "
                "through AttentionInterface, and cannot be trimmed: was it copied or wrapped?"
            )
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
        return kwargs | self._go_on(trim, record, kwargs)

    @property
    def _seen(self) -> _Seen:
        return getattr(self._here, "seen", None) or _NOTHING

    def _go_on(self, trim: Trim, record: Record, kwargs: dict[str, Any]) -> dict[str, Any]:
        """A decode step, or a user's next turn; returns the decoder's arguments."""
        tokens, cache = fed_tokens(kwargs), kwargs["past_key_values"]
        forward = Forward(trim.session, record, self.backend, cache)
        if trim.graph is not None:
            trim.graph.prepare(tokens, kwargs, forward)
        if tokens == 1:
            record.step(tokens)
        else:
            self._next_turn(forward, tokens, kwargs)
        return forward.arguments() | unpadded(kwargs, padded=record.padded)

    def _next_turn(self, forward: Forward, tokens: int, kwargs: dict[str, Any]) -> None:
        """A user's next turn, with pictures or without."""
        seen, record, cache = self._seen, forward.record, kwargs["past_key_values"]
        mask = padding_mask(seen.mask)
        mask = None if mask is None else mask[:, -tokens:].bool()
        visual = seen.visual
        if visual is None:  # embeddings of text
            visual = torch.zeros(len(record.prompt.visual), tokens, dtype=torch.bool)
        if mask is not None:
            visual = visual & mask.to(visual.device)
        prompt = layout(visual, mask)
        check_pictured(prompt, pictured=seen.pictured)
        check_turn(self.parts, prompt)
        record.padded |= not prompt.full
        mask = None if prompt.full else mask
        if not any(prompt.visual):
            record.step(tokens)
            for layer in cache.trimmed():
                layer.expect(tokens, mask)
            return
        if in_chunks():
            raise ValueError(
                "st3 needs a whole turn to choose what to drop: leave prefill_chunk_size unset"
            )
        turn = record.begin_turn(forward.session.plan.for_prompt(tokens), prompt)
        features = take_features(kwargs)
        forward.prefill = Prefill(record, turn, visual, mask, cache)
        if features is not None:
            forward.prefill.features = Features(*features)

    def _begin(self, trim: Trim, kwargs: dict[str, Any]) -> dict[str, Any]:
        """A prefill; returns the decoder's arguments."""
        session, graph, seen = trim.session, trim.graph, self._seen
        cache, mask = kwargs.get("past_key_values"), padding_mask(seen.mask)
        check_cache(cache)
        if seen.visual is None:
            raise ValueError("st3.trim needs input_ids to know which tokens are visual")
        if in_chunks():
            raise ValueError(
                "st3 needs the whole prompt to choose what to drop: leave prefill_chunk_size unset"
            )
        visual = seen.visual if mask is None else seen.visual & mask.bool()
        prompt = layout(visual, mask)
        check_pictured(prompt, pictured=seen.pictured)
        own = None if prompt.full else mask  # a recording must read no mask of one call
        use_cache = kwargs.get("use_cache")
        if use_cache is None:
            use_cache = self.decoder.config.use_cache

        plan, parts = session.plan.for_prompt(prompt.tokens), self.parts
        features = take_features(kwargs)

        def begin(visual: torch.Tensor) -> Forward:
            new, old = None, session.last_cache
            if use_cache:
                fresh = [
                    layer_for(parts.windows.get(number), prompt.last_visual)
                    for number in range(1, plan.layers + 1)
                ]
                if graph is not None:
                    graph.reuse(fresh, old.layers if old is not None else [])
                known: dict[int, Any] = parts.recurrent_layers()
                layers = [known.get(number, layer) for number, layer in enumerate(fresh, 1)]
                new = TrimmedCache.in_place_of(cache, layers)
            if graph is not None:
                session.retire(new)
            record = Record(plan, prompt, visual, own, new)
            session.begin(record, new)
            prefill = Prefill(record, record.turns[0], visual, own, new)
            if features is not None:
                prefill.features = Features(*features)
            return Forward(session, record, self.backend, new, prefill)

        if graph is not None:
            graph.rest()
            wanted = use_cache and features is None and graph.takes_prefill(kwargs)
            if wanted and graph.prefill.prepare(prompt, visual, kwargs, begin):
                return kwargs
        return kwargs | begin(visual).arguments() | unpadded(kwargs, padded=not prompt.full)


class _Replayed:
    """In the place of a decoder's forward, where a `trim` records or compiles."""

    def __init__(self, forward: Any) -> None:
        self.forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        graph: DecodeGraph | None = kwargs.pop(_GRAPH, None)
        return (self.forward if graph is None else graph)(*args, **kwargs)
