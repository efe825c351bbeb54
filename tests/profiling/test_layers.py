"""Layers of every kind: MACs against torch's counter on live models, bytes against the live cache.

One tiny random model for each kind: experts, shared experts and dense layers among them, latent
attention, sliding windows, chunks, borrowed keys, heads that differ, states, convolutions.
"""

from __future__ import annotations

import itertools
import sys
from functools import partial
from typing import Any

import pytest
import torch
from conftest import slow
from families.zoo import ZOO
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import st3
from st3.engine.plan import Plan
from st3.families.base import visual_mask
from st3.families.meta import meta_model
from st3.families.parts import find_parts
from st3.methods import make_method
from st3.profiling.costs import kv_bytes
from st3.profiling.course import Course, course_of
from st3.profiling.layers import Layer, layers_of
from st3.profiling.shape import Workload

KINDS = [
    "llava", "qwen3_vl_moe", "glm4v_moe", "aria", "kimi_k25", "gemma3", "gemma4, shared keys",
    "llava_next, sliding mistral", "llama4", "step3p7", "qwen3_5_moe", "lfm3_vl",
]  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {
    "none": {},
    "st3": {"prune_ratio": 0.5, "stride": 1, "ratio": 0.15, "tau": 13},
}
NEW = 16


def delta_rule(
    query: Any, key: Any, value: Any, g: Any, beta: Any, initial_state: Any = None, **_: Any
) -> Any:
    """The gated delta rule token by token, every product with the state a matrix product.

    Queries and keys [B, n, key heads, k], values [B, n, heads, v], `g` and `beta` [B, n, heads].
    """
    heads = value.shape[2]
    query, key = (x.repeat_interleave(heads // x.shape[2], dim=2) for x in (query, key))
    query, key, value, g, beta = (x.float() for x in (query, key, value, g, beta))
    state = value.new_zeros(len(value), heads, key.shape[3], value.shape[3])
    state = state if initial_state is None else initial_state.float()
    out = []
    for now in range(value.shape[1]):
        q, k, v = (x[:, now, :, None] for x in (query, key, value))
        state = state * g[:, now, :, None, None].exp()
        error = (v - k @ state) * beta[:, now, :, None, None]
        state = state + k.mT @ error
        out.append((q @ state)[:, :, 0])
    return torch.stack(out, 1), state


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Recurrent layers go token by token: what chunks compute besides is an implementation's."""

    def change(model: Any) -> None:
        for module in {sys.modules[type(x).__module__] for x in model.modules()}:
            for name in ("torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"):
                if hasattr(module, name):
                    monkeypatch.setattr(module, name, delta_rule)

    return change


def watched(model: Any, inputs: Any, method: str) -> tuple[list[list[int]], Any]:
    """MACs of every layer in each forward of a trimmed generation, and its session."""
    counter = FlopCounterMode(display=False)
    counts: list[list[int]] = []
    layers = find_parts(model).layers

    def before(number: int, *_: Any) -> None:
        if number == 0:
            counts.append([])
        counts[-1].append(-counter.get_total_flops())

    def after(*_: Any) -> None:
        counts[-1][-1] += counter.get_total_flops()

    with counter, st3.trim(model, method, max_new_tokens=NEW, **METHODS[method]) as session:
        for number, layer in enumerate(layers):
            layer.register_forward_pre_hook(partial(before, number))
            layer.register_forward_hook(after)
        model.generate(
            **inputs, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False,
            suppress_tokens=list(range(93, 100)),
        )  # fmt: skip
    return [[count // 2 for count in step] for step in counts], session


def expected(
    config: Any, ids: torch.Tensor, method: str
) -> tuple[tuple[Layer, ...], Course, Workload]:
    """What is counted for such a prompt."""
    model = meta_model(config)
    parts, layers = find_parts(model), layers_of(model)
    visual = visual_mask(parts.visual_ids, ids)[0]
    work = Workload(int(visual.sum()), int((~visual).sum()), NEW)
    object.__setattr__(work, "trailing", lambda pictures: len(visual) - 1 - visual.nonzero()[-1])
    made = make_method(method, **METHODS[method])
    schedule = Plan.of(made, parts, tokens=len(visual)).schedule
    return layers, course_of(layers, schedule, work), work


def beside(live: nn.Module, layer: Layer, tokens: int, keys: int, *, step: bool = False) -> int:
    """What transformers computes in a layer besides what we count, here on a CPU with eager code.

    Windows are masks over all keys, kernels of convolutions start in their padding, and Llama 4's
    layers run all experts for every token.
    """
    seen = keys if layer.window is None or step else min(keys, layer.window)
    more = tokens * (keys - seen) * layer.per_pair
    for module in live.modules():
        if isinstance(module, nn.Conv1d):
            more += module.weight.numel() * (module.kernel_size[0] - 1 if not step else 1)
    if type(live).__module__.endswith("llama4") and layer.experts:
        more += tokens * (layer.experts - layer.active) * layer.expert
    return more


@pytest.mark.parametrize("method", ["st3", *slow("none")])
@pytest.mark.parametrize("kind", KINDS)
def test_counts_are_those_of_a_live_model(kind: str, method: str, one_by_one: Any) -> None:
    """At prefill and in every step, layer by layer, but for a row of scores where some is made."""
    tiny = ZOO[kind]
    if not tiny.known:
        pytest.skip(f"this transformers has no {tiny.config}")
    config = tiny.configuration()
    model = tiny.build()
    inputs = tiny.inputs(model, tiny.one)
    layers, course, _ = expected(config, inputs["input_ids"], method)
    one_by_one(model)
    parts = find_parts(model)
    parts.decoder.set_attn_implementation("eager")
    model.set_experts_implementation("eager")
    counts, session = watched(model, inputs, method)
    assert kv_bytes(layers, course, 1, model.dtype.itemsize) == tuple(session.kv_bytes)
    scored = {group.scored_in for group in session.groups} if method != "none" else set()
    for number, (live, layer) in enumerate(zip(parts.layers, layers, strict=True)):
        tokens, keys = course.tokens[number], course.keys[number]
        found = counts[0][number] - beside(live, layer, tokens, keys)
        scores = found - layer.prefill_macs(tokens, keys)
        assert scores == 0 or (number + 1 in scored and 0 < scores < keys * layer.per_pair)
        for step in range(1, NEW):
            held = course.held[step][number]
            found = counts[step][number] - beside(live, layer, 1, held, step=True)
            assert found == layer.step_macs(held)


def test_what_is_not_counted_is_refused_in_a_line() -> None:
    """ERNIE's tokens meet one of two sets of experts, by whether they are pictures."""
    model = meta_model(ZOO["ernie4_5_vl_moe"].configuration())
    with pytest.raises(ValueError, match="experts of several kinds in a layer"):
        layers_of(model)


def test_a_step_reads_the_experts_that_its_batch_meets() -> None:
    """Against all that an even router may pick for three tokens."""
    layers = layers_of(meta_model(ZOO["qwen3_vl_moe"].configuration()))
    layer = layers[0]
    assert (layer.experts, layer.active, layer.expert) == (4, 2, 3 * 64 * 32)
    assert layer.parameters_read(1) == layer.active_parameters == layer.shared + 2 * layer.expert
    picks = list(itertools.combinations(range(4), 2))
    met = [len({*one, *other, *third}) for one in picks for other in picks for third in picks]
    assert layer.parameters_read(3) == pytest.approx(
        layer.shared + layer.expert * sum(met) / len(met)
    )
    dense = layers_of(meta_model(ZOO["llava"].configuration()))[0]
    assert dense.parameters_read(1) == dense.parameters_read(9) == dense.shared


def test_a_state_is_as_large_as_a_live_one() -> None:
    config = ZOO["qwen3_5"].configuration()
    model = ZOO["qwen3_5"].build()
    ids = torch.zeros(1, 9, dtype=torch.long)
    held = find_parts(model).decoder(input_ids=ids, use_cache=True).past_key_values
    live = sum(
        state.nbytes
        for layer in held.layers
        for name in ("conv_states", "recurrent_states")
        for state in getattr(layer, name, {}).values()
    )
    assert sum(layer.state_bytes(4) for layer in layers_of(meta_model(config))) == live > 0
