"""`trim`: the context manager that makes a live model drop visual tokens inside stock `generate()`.

The door to the engine. It checks what is asked for, opens a scope (`st3.engine.scope`), and sees to
the hooks (`st3.engine.hooks`), which a model has while any scope of it is open.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from st3.engine.attention import BACKENDS
from st3.engine.compilers import COMPILERS
from st3.engine.entry import Trim
from st3.engine.hooks import Hooks
from st3.engine.plan import Plan
from st3.engine.ranks import head_ranks
from st3.engine.scope import opened_here
from st3.engine.session import TrimSession
from st3.families.parts import devices, find_parts, unproven
from st3.methods import Method, make_method

_LOCK = threading.RLock()
_HOOKED: weakref.WeakKeyDictionary[nn.Module, Hooks] = weakref.WeakKeyDictionary()
"""By decoder: the hooks of the models that are being trimmed."""


@contextmanager
def trim(
    model: PreTrainedModel,
    method: str | Method | type[Method] = "st3",
    *,
    max_new_tokens: int | None = None,
    cuda_graphs: bool = False,
    compile: str = "off",
    **parameters: Any,
) -> Iterator[TrimSession]:
    """Trim visual tokens of everything that this context makes `model` compute inside the `with`.

    What belongs to the context: the thread or asyncio task that runs the `with`, what it starts by
    `asyncio.to_thread`, and threads that it starts and that open none of their own. Other contexts,
    and threads that ran before or that others started, get the model as it was.

    A forward's logits and hidden states lie at the positions of its input. Those of visual tokens
    that were dropped are finite and mean nothing: so does the label of a text token right behind a
    picture, which its last visual token would predict. Attention weights are those of the tokens
    alive.

    Under tensor parallelism every process opens its own, with the same arguments: all keep the same
    tokens, and each counts the bytes of its own heads.

    Args:
        model: a model that `st3.load` or transformers made, of a family that fits (docs/models.md);
            or one in PEFT's wrapper, or in one that calls it `module`, such as
            DistributedDataParallel. A family that fits without an oracle's proof is trimmed with a
            warning.
        method: a name in `st3.methods.METHODS`, a spec such as `A:keep=50%+B`, one of one's own,
            such as `./mine.py:Mine`; or a `Method`, or its class.
        max_new_tokens: the most that a generation will bring, if known: the KV cache is then
            allocated once, for that many. Longer answers are no error.
        cuda_graphs: record the decode step once and replay it, and prefill, too, where one layout
            of prompt comes again and again. Where that cannot be (no CUDA device, FlashAttention),
            a warning says so and decoding goes on as usual; so it does, without a word, for steps
            with gradients or autocast, or whose hidden states are asked for. A replay runs no
            hooks of others on the decoder or below, and sees no adapter switched in between. One
            generation at a time: a later one takes the buffers of the one before.
        compile: `inductor` compiles the decode step: on a CPU in seconds, for prompts of all
            lengths; on a GPU by torch.compile, once for each number of prompts and size of buffers,
            half a minute. `auto` measures once whether that pays on a CPU, and remembers it.
            `openvino` has OpenVINO compile the same layers, with a second copy of the weights. What
            cannot be compiled is a warning, and so is a hook of others below a layer. On a CPU
            weights, adapters and hooks may change between two answers, and not in the middle of
            one.
        parameters: of the method, such as `stride=4, ratio=0.07, tau=128`. Every one takes
            `kv_cache_dtype="int8"` or `"int4"`: the cache holds keys and values in fewer bits, on
            top of what trimming saves. Prefill attends to them as they are, every later step to
            what the cache holds.

    Yields:
        The session, which tells what was kept where and how many bytes the KV cache holds.

    Raises:
        ValueError: a model that does not fit, or parameters that do not fit it.
        RuntimeError: this context is trimming the model already.
    """
    if compile not in COMPILERS:
        raise ValueError(f"unknown compiler {compile!r}; known: {', '.join(COMPILERS)}")
    model, method = _unwrapped(model), make_method(method, **parameters)
    hooks = Hooks(find_parts(model))
    doubt = unproven(model)
    if doubt is not None:
        warnings.warn(doubt, stacklevel=3)
    _check(hooks)
    plan = Plan.of(method, hooks.parts, max_new_tokens, ranks=head_ranks(model))
    if plan.ranks is not None and not plan.scorer.across_ranks:
        raise ValueError(
            f"the scorer {method.scorer!r} sees the heads of one process alone under tensor "
            "parallelism: let it merge heads by LayerView.merged, and set its across_ranks = True"
        )
    opened = Trim(TrimSession(plan))
    if plan.ranks is not None and opened.wish.layers:
        raise ValueError(
            f"{method.name} looks at attention in the vision tower, whose heads may lie in several "
            "processes under tensor parallelism: take a method that looks at tokens alone"
        )
    with _LOCK:
        hooks = _HOOKED.get(hooks.decoder, hooks)
        if opened_here(hooks.trims) is not None:
            raise RuntimeError(
                "this model is being trimmed already: leave that `with st3.trim` first"
            )
        if cuda_graphs or compile != "off":
            hooks.replay(opened, cuda_graphs, compile, model.get_output_embeddings())
        if not hooks.trims:
            hooks.install()
            _HOOKED[hooks.decoder] = hooks
        hooks.watch(opened)
        hooks.trims = [*hooks.trims, opened]
        opened.enter()
    try:
        yield opened.session
    finally:
        with _LOCK:
            opened.leave()
            hooks.trims = [other for other in hooks.trims if other is not opened]
            if not hooks.trims:
                hooks.remove()
                del _HOOKED[hooks.decoder]
        if opened.graph is not None:
            opened.graph.forget()
        opened.session.close()


def _unwrapped(model: Any) -> Any:
    """The model of transformers, inside however many wrappers that say what they hold.

    Raises:
        ValueError: there is none, or a wrapper that computes with copies of it.
    """
    found = model
    while True:
        if len(getattr(found, "device_ids", None) or ()) > 1:
            raise ValueError(
                f"{type(found).__name__} computes with a copy of the model on each device, and "
                "copies are not trimmed: take one device, or DistributedDataParallel"
            )
        base = getattr(found, "get_base_model", None)  # PEFT's wrapper
        if base is not None:
            found = base()
        elif isinstance(getattr(found, "config", None), PreTrainedConfig):
            return found
        elif isinstance(getattr(found, "module", None), nn.Module):
            found = found.module
        else:
            break
    inside = found.named_modules() if isinstance(found, nn.Module) else ()
    held = next((name for name, part in inside if isinstance(part, PreTrainedModel)), "")
    raise ValueError(
        "st3.trim takes a model that st3.load or transformers made, not of type "
        + type(found).__name__
        + (f": pass the one that it holds as {held}" if held else "")
    )


def _check(hooks: Hooks) -> None:
    """Refuse what cannot be trimmed as it lies there.

    Raises:
        ValueError: says what, and how to mend it.
    """
    if hooks.backend not in BACKENDS:
        raise ValueError(
            f"st3 cannot trim under the attention implementation {hooks.backend!r}; "
            f"load the model with one of: {', '.join(BACKENDS)}"
        )
    for number, layer in enumerate(hooks.parts.layers, 1):
        lies = sorted(str(device) for device in devices(layer))
        if len(lies) > 1:
            raise ValueError(
                f"layer {number} of the decoder is split over {' and '.join(lies)}: give each "
                "layer one device in the device map"
            )
