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
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from st3.engine.asked import brings_pictures
from st3.engine.attention import FORWARD, ask_for_rules, backend_of, trimmed_configs
from st3.engine.compiled_layers import in_place_of
from st3.engine.decode_graph import DecodeGraph
from st3.engine.entry import NOTHING, Seen, Trim, begin, go_on
from st3.engine.forward import Forward
from st3.engine.positions import spread_output
from st3.engine.record import Record
from st3.engine.scope import whose_call
from st3.engine.sight import Wish
from st3.engine.tower import TowerWatch
from st3.engine.tower_rows import Mark
from st3.families.base import visual_mask
from st3.families.parts import Parts, argument_names

_GRAPH = "st3_graph"


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
        self.tower = TowerWatch(parts.merger, self._asked)
        self._numbers = {layer: number for number, layer in enumerate(parts.layers, 1)}
        self._here = threading.local()
        self._own_forward = vars(self.decoder).get("forward")
        self._compiled: dict[nn.Module, Any] = {}
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

    def watch(self, trim: Trim) -> None:
        """Look at the vision tower, as far as the method of a `trim` asks for it."""
        self.tower.install(trim.wish)

    def _asked(self) -> tuple[Wish, Mark]:
        trim = whose_call(self.trims)
        return (Wish(), None) if trim is None else (trim.wish, trim.session.mark)

    def remove(self) -> None:
        """Leave the model as it was."""
        self.tower.remove()
        for handle in self._handles:
            handle.remove()
        for module, config in self._configured:
            module.config = config
        if isinstance(vars(self.decoder).get("forward"), _Replayed):
            del self.decoder.forward
            if self._own_forward is not None:
                self.decoder.forward = self._own_forward
        for module, ours in self._compiled.items():
            if vars(module).get("forward") is ours:  # and not somebody's who came later
                del module.forward

    def replay(self, trim: Trim, cuda_graphs: bool, compiler: str, head: nn.Module | None) -> None:
        """Let the decode steps of a `trim` be recorded, compiled, or both.

        Args:
            head: what makes logits of the decoder's output, if it has one.
        """
        held = vars(self.decoder).get("forward")
        forward = held.forward if isinstance(held, _Replayed) else self.decoder.forward
        trim.graph = DecodeGraph(
            trim.session, self.parts, forward, self.backend,
            cuda_graphs=cuda_graphs, compiler=compiler,
        )  # fmt: skip
        if not isinstance(held, _Replayed):
            self.decoder.forward = _Replayed(forward)
        if trim.graph.by_layers and not self._compiled:
            # Whoever gave a module a forward of its own keeps it, uncompiled.
            for module in (*self.parts.layers, *([] if head is None else [head])):
                if "forward" not in vars(module):
                    number, forward = self._numbers.get(module), module.forward
                    module.forward = (
                        partial(self._logits, forward, module)
                        if number is None
                        else in_place_of(forward, module, number)
                    )
                    self._compiled[module] = module.forward

    def _logits(
        self, forward: Any, module: nn.Module, hidden: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        """In the place of the head's forward; a copy of the model takes it along."""
        trim = whose_call(self.trims) if module in self._compiled else None
        graph = None if trim is None else trim.graph
        found = None if graph is None or kwargs else graph.head(module, hidden)
        logits: torch.Tensor = forward(hidden, **kwargs) if found is None else found
        return logits

    def see_tokens(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Before pictures are merged into the text: remember which tokens are visual."""
        ids, mask = kwargs.get("input_ids", args[0] if args else None), kwargs.get("attention_mask")
        visual = None if ids is None else visual_mask(self.parts.visual_ids, ids)
        pictured, encoded = brings_pictures(args, kwargs), kwargs.get("mm_encoder_outputs")
        self._here.seen = Seen(ids, visual, mask, pictured, encoded if pictured else None)
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
        seen = getattr(self._here, "seen", None) or NOTHING
        if trim.wish.any and seen.pictured:
            seen = replace(seen, sights=self.tower.of(seen.encoded))
        if record is None:
            return begin(trim, self.parts, self.backend, seen, kwargs)
        forward = Forward(trim.session, record, self.backend, kwargs["past_key_values"])
        return kwargs | go_on(trim, forward, seen, kwargs)


class _Replayed:
    """In the place of a decoder's forward, where a `trim` records or compiles."""

    def __init__(self, forward: Any) -> None:
        self.forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        graph: DecodeGraph | None = kwargs.pop(_GRAPH, None)
        return (self.forward if graph is None else graph)(*args, **kwargs)
