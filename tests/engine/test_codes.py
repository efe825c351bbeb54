"""Keys and values in few bits: the code itself, and trimming on top of it against the oracle."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import greedy as any_greedy
from families.zoo import ZOO
from transformers import DynamicCache

import st3
from st3.engine.cache import TrimmedCache
from st3.engine.codes import Codes, codec, slot_bytes
from st3.families.base import visual_mask
from st3.families.parts import find_parts
from st3.verification.masked import Hidden, masked_logits

BITS = {"int8": 8, "int4": 4}
METHODS: dict[str, dict[str, Any]] = {
    "none": {},
    "pvtp": {"prune_ratio": 0.5, "stride": 1, "ratio": 0.15},
    "st3": {"prune_ratio": 0.5, "stride": 1, "ratio": 0.15, "tau": 9},
}


def coded(states: torch.Tensor, bits: int) -> torch.Tensor:
    """What `bits` leave of states [..., n], in plain arithmetic: groups of 128 or 32 at most."""
    numbers, dtype = states.shape[-1], states.dtype
    most = {8: 128, 4: 32}[bits]
    group = max(n for n in range(1, most + 1) if numbers % n == 0)
    top = (1 << bits) - 1
    flat = states.reshape(-1, group).to(torch.promote_types(dtype, torch.float32))
    low = flat.min(1, keepdim=True).values
    step = ((flat.max(1, keepdim=True).values - low) / top).to(dtype)
    step = step.clamp_min(torch.finfo(dtype).tiny).to(flat.dtype)
    low = low.to(dtype).to(flat.dtype)
    code = torch.round((flat - low) / step).clamp(0, top)
    return (low + code * step).to(dtype).reshape(states.shape)


class CodedCache(DynamicCache):
    """Stock's cache at full length, of which every step after the prompt sees what bits leave."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def update(
        self, key_states: Any, value_states: Any, layer_idx: int, *args: Any, **kw: Any
    ) -> Any:
        first = len(self.layers) <= layer_idx or not self.layers[layer_idx].get_seq_length()
        keys, values = super().update(key_states, value_states, layer_idx, *args, **kw)
        if first:
            return keys, values
        return coded(keys, self.bits), coded(values, self.bits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("numbers", [16, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("kind", BITS)
def test_codes_lose_half_a_step(kind: str, numbers: int, dtype: torch.dtype) -> None:
    torch.manual_seed(numbers)
    states = (torch.randn(2, 3, 5, numbers) * torch.rand(numbers).mul(4).exp()).to(dtype)
    form = codec(kind, states)
    assert isinstance(form, Codes)
    slots = form.encode(states)
    assert slots.shape == (2, 3, 5, form.size)
    assert slots[0, 0, 0].nbytes == slot_bytes(kind, numbers, dtype.itemsize)
    groups = numbers // form.group
    assert form.size == numbers * BITS[kind] // 8 + groups * 2 * dtype.itemsize
    back = form.decode(slots)
    assert back.dtype == dtype
    ulp = torch.finfo(dtype).eps * float(states.abs().max())  # one arithmetic rounds once more
    torch.testing.assert_close(back, coded(states, BITS[kind]), rtol=0, atol=ulp)
    grouped = states.double().unflatten(-1, (groups, -1))
    step = (grouped.amax(-1) - grouped.amin(-1)) / ((1 << BITS[kind]) - 1)
    rounding = 3 * torch.finfo(dtype).eps * grouped.abs().amax(-1)
    off = (back.double() - states.double()).unflatten(-1, (groups, -1)).abs().amax(-1)
    assert bool((off <= step / 2 * 1.001 + rounding).all())
    # Slots do not know each other: moving them is moving tokens.
    order = torch.randperm(5)
    assert torch.equal(form.decode(slots[:, :, order]), back[:, :, order])


def test_codes_of_what_does_not_vary() -> None:
    for dtype in (torch.float32, torch.float16):
        states = torch.tensor([[0.0] * 32, [-3.5] * 32, [1e-7] * 32]).to(dtype)
        for kind in BITS:
            form = codec(kind, states)
            assert torch.equal(form.decode(form.encode(states)), states)


def test_what_cannot_be_held() -> None:
    with pytest.raises(ValueError, match="7 numbers cannot be held as int4: use auto"):
        codec("int4", torch.zeros(1, 7))
    model = ZOO["llava"].build()
    with pytest.raises(ValueError, match="unknown kv_cache_dtype 'int3'; known: auto, int8, int4"):
        st3.trim(model, kv_cache_dtype="int3").__enter__()


@pytest.mark.parametrize("kind", BITS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("prompts", ["one", "padded"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl", "gemma3", "kimi_k25"])
def test_trimmed_and_coded_is_the_oracle(name: str, prompts: str, method: str, kind: str) -> None:
    """Stock at full length sees, behind masks, what the same bits leave of its keys and values."""
    if not ZOO[name].known:
        pytest.skip(f"this transformers has no {ZOO[name].config}")
    # In fp32 noise turns some codes to their neighbour.
    tiny = replace(ZOO[name], dtype=torch.float64)
    model = tiny.build()
    inputs = tiny.inputs(model, getattr(tiny, prompts))
    parts = find_parts(model)
    visual = visual_mask(parts.visual_ids, inputs["input_ids"]) & inputs["attention_mask"].bool()
    with st3.trim(model, method, kv_cache_dtype=kind, **METHODS[method]) as session:
        ours = any_greedy(model, inputs, suppress_tokens=list(range(93, 100)))
        record, cache = session.record, session.cache
        assert cache is not None
        assert cache.live_bytes == session.kv_bytes[-1]
    answer = ours.sequences[:, inputs["input_ids"].shape[1] :]
    said = Hidden(record.plan.schedule, record.plan.groups, visual, parts.lenders)
    with torch.no_grad():
        want = masked_logits(model, parts.decoder, inputs, answer, said, CodedCache(BITS[kind]))
        plain = masked_logits(model, parts.decoder, inputs, answer, said)
    got = torch.stack(ours.logits, 1)
    torch.testing.assert_close(got, want.to(got.dtype), atol=1e-5, rtol=1e-5)
    assert (got - plain).abs().amax() > 1e-3


@pytest.mark.parametrize("kind", BITS)
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_bytes_are_those_of_the_bits(name: str, kind: str) -> None:
    """Held: what slots take. Untrimmed: what stock's own cache holds, which codes nothing."""
    model = ZOO[name].build()
    inputs = ZOO[name].inputs(model, ("ttIItttt",))
    stock = any_greedy(model, inputs, 4).past_key_values
    with st3.trim(model, "none", kv_cache_dtype=kind) as session:
        any_greedy(model, inputs, 4)
        cache, parts = session.cache, find_parts(model)
        assert isinstance(cache, TrimmedCache)
        predicted = 0
        for number in parts.keyed:
            theirs, mine = stock.layers[number - 1], cache.layers[number - 1]
            heads, head = theirs.keys.shape[1], theirs.keys.shape[3]
            predicted += 2 * heads * mine.alive * slot_bytes(kind, head, 4)
        assert session.kv_bytes[-1] == predicted == cache.live_bytes
        held = sum(x.nbytes for layer in stock.layers for x in (layer.keys, layer.values))
        assert session.untrimmed_kv_bytes[-1] == held


def test_beams_take_their_codes_along() -> None:
    model = replace(ZOO["llava"], dtype=torch.float64).build()
    inputs = ZOO["llava"].inputs(model, ("ttIItttt",))
    settings = {"num_beams": 3, "max_new_tokens": 8, "do_sample": False, "output_scores": True}
    settings |= {"return_dict_in_generate": True, "suppress_tokens": list(range(93, 100))}
    with torch.no_grad():
        theirs = model.generate(**inputs, past_key_values=CodedCache(8), **settings)
        with st3.trim(model, "none", kv_cache_dtype="int8"):
            ours = model.generate(**inputs, **settings)
    assert torch.equal(ours.sequences, theirs.sequences)
    torch.testing.assert_close(ours.sequences_scores, theirs.sequences_scores, atol=1e-4, rtol=1e-4)
