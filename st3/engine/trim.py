"""`trim`: the context manager that makes a live model drop visual tokens inside stock `generate()`.

The only code that touches a live model, and only through official extension points:

- a pre-hook on the module that merges pictures into text sees which tokens are visual;
- a pre-hook on the decoder swaps the empty cache of a prefill for a `TrimmedCache`, and lets
  annealing evict before a decode step;
- a pre-hook on each decoder layer gathers hidden states and position embeddings down to the tokens
  that its group keeps;
- an attention function scores in the deciding layers, fills the cache, and calls the attention that
  the model had before. No mask function is registered with it, so transformers builds none; the
  masks, where one is needed at all, are made here for the tokens alive.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, DynamicCache, PreTrainedModel

from st3.engine.cache import TrimmedCache
from st3.engine.cache_layer import TrimmedLayer
from st3.engine.decode_graph import COMPILERS, DecodeGraph
from st3.engine.kernels import call_attention
from st3.engine.masks import attention_mask
from st3.engine.prefill import Prefill
from st3.engine.prompt import layout
from st3.engine.session import TrimSession
from st3.engine.static_cache import StaticLayer
from st3.families.base import Adapter, attention_function, find_adapter, visual_mask
from st3.methods import Method, make_method

_IMPLEMENTATION = "st3_trim"
_PICTURES = ("pixel_values", "image_features", "inputs_embeds", "mm_encoder_outputs")
"""Arguments that bring what visual tokens stand for."""
_BACKENDS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3")


@contextmanager
def trim(
    model: PreTrainedModel,
    method: str | Method = "st3",
    *,
    max_new_tokens: int | None = None,
    cuda_graphs: bool = False,
    compile: str = "off",
    **parameters: Any,
) -> Iterator[TrimSession]:
    """Trim visual tokens of everything that `model` computes inside the `with`.

    Args:
        model: a model that `st3.load` or transformers made, of a family that has an adapter; or
            one in PEFT's wrapper.
        method: a name in `st3.methods.METHODS`, or a `Method`.
        max_new_tokens: the most that a generation will bring, if known: the KV cache is then
            allocated once, for that many. Longer answers are no error.
        cuda_graphs: record the decode step once and replay it, and prefill, too, where one layout
            of prompt comes again and again. Where that cannot be (no CUDA device, FlashAttention),
            a warning says so and decoding goes on as usual; so it does, without a word, for steps
            with gradients or autocast, or whose hidden states are asked for. A replay runs no
            hooks of others on the decoder or below, and sees no adapter switched in between.
        compile: `inductor` compiles the decode step by torch.compile, once for each number of
            prompts and size of buffers in a process, a minute for a large model; `off` does not.
        parameters: of the method, such as `stride=4, ratio=0.07, tau=128`.

    Yields:
        The session, which tells what was kept where and how many bytes the KV cache holds.

    Raises:
        ValueError: a model without an adapter, or parameters that do not fit it.
        RuntimeError: the model is being trimmed already.
    """
    if compile not in COMPILERS:
        raise ValueError(f"unknown compiler {compile!r}; known: {', '.join(COMPILERS)}")
    inside: Any = getattr(model, "get_base_model", None)
    if inside is not None:  # PEFT's wrapper
        model = inside()
    if isinstance(method, str):
        method = make_method(method, **parameters)
    elif parameters:
        raise ValueError("give parameters with the name of a method, not with a Method")
    adapter = find_adapter(model.config)
    decoder = adapter.decoder(model)
    config: Any = decoder.config
    before: str = config._attn_implementation
    if before == _IMPLEMENTATION:
        raise RuntimeError("this model is being trimmed already: leave that `with st3.trim` first")
    if before not in _BACKENDS:
        raise ValueError(
            f"st3 cannot trim under the attention implementation {before!r}; "
            f"load the model with one of: {', '.join(_BACKENDS)}"
        )
    layers: list[nn.Module] = list(decoder.layers)  # type: ignore[arg-type]
    if len({p.device for layer in layers for p in layer.parameters()}) > 1:
        raise ValueError("st3 cannot trim a decoder that lies on several devices: use one device")
    if (getattr(model, "_tp_size", None) or 1) > 1:
        raise ValueError("st3 cannot trim under tensor parallelism: each rank would choose alone")
    session = TrimSession(method, len(layers), max_new_tokens)
    trimmer = _Trimmer(session, adapter, model, before)
    places = [(adapter.merger(model), trimmer.see_tokens), (decoder, trimmer.enter)]
    places += [(layer, trimmer.enter_layer) for layer in layers]
    hooks = []
    own_forward = vars(decoder).get("forward")
    try:
        if cuda_graphs or compile != "off":
            trimmer.graph = DecodeGraph(
                session, decoder, before, cuda_graphs=cuda_graphs, compiler=compile
            )
            decoder.forward = trimmer.graph
        for module, hook in places:
            hooks += [module.register_forward_pre_hook(hook, with_kwargs=True)]
        config._attn_implementation = _IMPLEMENTATION
        yield session
    finally:
        config._attn_implementation = before
        for handle in hooks:
            handle.remove()
        if trimmer.graph is not None:
            trimmer.graph.forget()
            del decoder.forward
            if own_forward is not None:
                decoder.forward = own_forward
        trimmer.prefill = None
        session.close()


class _Trimmer:
    """The hooks of one `trim`, and the prefill they are in, if any."""

    def __init__(self, session: TrimSession, adapter: Adapter, model: Any, backend: str) -> None:
        self.session = session
        self.adapter = adapter
        self.model = model
        self.backend = backend
        self.attention = attention_function(adapter.decoder(model), backend)
        self.visual: torch.Tensor | None = None
        self.pictured = False
        self.prefill: Prefill | None = None
        self.graph: DecodeGraph | None = None

    def see_tokens(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Before pictures are merged into the text: remember which tokens are visual."""
        input_ids = kwargs.get("input_ids", args[0] if args else None)
        # transformers 5.23 encodes pictures beforehand, and hands on an empty dict where are none.
        brought = (kwargs.get(name) for name in _PICTURES)
        self.pictured = len(args) > 1 or any(
            bool(x) if isinstance(x, dict) else x is not None for x in brought
        )
        self.visual = None
        if input_ids is not None:
            self.visual = visual_mask(self.adapter, self.model, input_ids)

    def enter(self, module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Before the decoder: start a prefill, or let annealing evict before a decode step."""
        cache, hidden = kwargs.get("past_key_values"), kwargs["inputs_embeds"]
        mask, tokens = kwargs.get("attention_mask"), hidden.shape[1]
        if mask is not None and mask.dim() != 2:
            raise ValueError(f"st3.trim needs a mask [batch, tokens], got a {mask.dim()}-D one")
        if isinstance(cache, TrimmedCache) and cache is self.session.cache:
            if tokens > 1:
                self._check_turn(mask, tokens)
            self.prefill = None
            if self.graph is not None:
                self.graph.prepare(tokens, kwargs)
            self.session.step(tokens)
            return args, kwargs
        empty = isinstance(cache, DynamicCache) and not cache.get_seq_length()
        if cache is not None and (not empty or getattr(cache, "offloading", False)):
            what = f"a {type(cache).__name__}"
            if isinstance(cache, TrimmedCache):
                what = "one of an st3.trim that has ended, or of an earlier conversation"
            raise ValueError(
                f"st3.trim brings its own KV cache and cannot go on from {what}: start with the "
                "whole prompt, a new DynamicCache() or none, and cache_implementation unset"
            )
        if self.visual is None:
            raise ValueError("st3.trim needs input_ids to know which tokens are visual")
        visual = self.visual if mask is None else self.visual & mask.bool()
        prompt = layout(visual, mask)
        if any(prompt.visual) and not self.pictured:
            raise ValueError(
                f"the prompt has places for {max(prompt.visual)} visual tokens, and nothing to put "
                "there: give pixel_values"
            )
        use_cache = kwargs.get("use_cache")
        if use_cache is None:
            use_cache = module.config.use_cache

        own = None if prompt.full else mask  # a recording must read no mask of one call

        def begin(visual: torch.Tensor) -> None:
            new_cache, old = None, self.session.cache
            if use_cache:
                fresh = [TrimmedLayer() for _ in range(self.session.layers)]
                if self.graph is not None:
                    self.graph.reuse(fresh, old.layers if old is not None else [])
                new_cache = TrimmedCache.in_place_of(cache, fresh)
            self.session.start(prompt, new_cache, visual, own)
            self.prefill = Prefill(self.session, prompt, visual, own)

        graph = self.graph
        if graph is not None:
            graph.rest()
        recorded = (
            graph is not None
            and use_cache
            and graph.takes_prefill(kwargs)
            and graph.prefill.prepare(prompt, visual, kwargs, begin)
        )
        if not recorded:
            begin(visual)
            kwargs["past_key_values"] = self.session.cache
        return args, kwargs

    def _check_turn(self, mask: torch.Tensor | None, tokens: int) -> None:
        """A later forward of many tokens: a user's next turn."""
        if self.visual is not None and bool(self.visual.any()):
            raise ValueError("st3 needs every picture of a conversation in its first forward")
        if mask is not None and not bool(mask[:, -tokens:].all()):
            raise ValueError("st3 cannot take padding in a later turn: feed the rows one by one")

    def enter_layer(self, module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Before a layer: at prefill, gather the tokens that its group keeps."""
        kwargs["st3_trimmer"] = self
        if self.prefill is not None:
            layer = module.self_attn.layer_idx + 1
            hidden = args[0] if args else kwargs["hidden_states"]
            hidden, turns = self.prefill.enter_layer(layer, hidden, kwargs["position_embeddings"])
            args = (hidden, *args[1:]) if args else args
            if not args:
                kwargs["hidden_states"] = hidden
            kwargs["position_embeddings"] = turns
            # Positions with gaps look like packed sequences to FlashAttention's wrapper.
            kwargs["position_ids"] = None
        return args, kwargs

    def attend(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        **kwargs: Any,
    ) -> Any:
        """One layer's attention, with our mask and, at prefill, our scoring and cache."""
        layer = module.layer_idx + 1
        if self.prefill is not None:
            self.prefill.observe(layer, query, key, value, kwargs["scaling"])
            valid = self.prefill.valid
        else:
            assert self.session.cache is not None
            cached = self.session.cache.layers[layer - 1]
            if isinstance(cached, StaticLayer):
                bias = cached.slots.bias
                return call_attention(self.attention, module, query, key, value, bias, **kwargs)
            valid = cached.live_valid()
        if self.session.observer is not None:
            self.session.observer(layer, query, key, kwargs["scaling"], valid)
        if not query.dtype == key.dtype == value.dtype and not torch.is_autocast_enabled(
            query.device.type
        ):  # a prefill under autocast, and a step without
            key, value = key.to(query.dtype), value.to(query.dtype)
        mask = attention_mask(valid, query, key, self.backend)
        if not self.backend.startswith("flash"):
            return call_attention(self.attention, module, query, key, value, mask, **kwargs)
        # FlashAttention's wrapper reads its own name here.
        module.config._attn_implementation = self.backend
        try:
            return self.attention(module, query, key, value, mask, **kwargs)
        finally:
            module.config._attn_implementation = _IMPLEMENTATION


def _attention(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any
) -> Any:
    trimmer: _Trimmer = kwargs.pop("st3_trimmer")
    return trimmer.attend(module, query, key, value, **kwargs)


AttentionInterface.register(_IMPLEMENTATION, _attention)
