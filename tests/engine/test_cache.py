"""The cache against plain lists, and its bytes against the schedule's arithmetic."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from conftest import greedy, prompts, tiny_llava

import st3
from st3.engine.cache_layer import Order, TrimmedLayer
from st3.methods import Method, make_method

SETTINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "pvtp": {"stride": 2, "ratio": 0.15},
    "vta": {"tau": 30},
    "st3": {"stride": 2, "ratio": 0.15, "tau": 70, "annealing": "linear"},
}


@pytest.mark.parametrize("seed", range(6))
def test_layer_behaves_as_lists_do(seed: int) -> None:
    """Random evictions, appends and reorderings; buffers slide, grow and never mix tokens up."""
    rng = random.Random(seed)
    visual, text, rows = rng.choice([10, 200]), rng.choice([1, 20]), 3
    counts = [visual] * rows if seed % 2 else [visual, visual // 2, 0]
    keys = torch.arange(float(rows * (visual + text))).view(rows, 1, -1, 1).expand(-1, 2, -1, 4)
    layer = TrimmedLayer()
    index = torch.stack([torch.randperm(visual + text) for _ in range(rows)])
    valid = torch.ones(rows, visual + text, dtype=torch.bool)
    for row, count in enumerate(counts):
        valid[row, : visual - count] = False
    order = Order(index, None if seed % 2 else valid, visual)
    tight = rng.random() < 0.5
    layer.store(
        keys, -keys, seen=visual + text, valid=None, order=order,
        capacity=lambda t: visual + text + (t // 4 if tight else t),
        room=rng.choice([None, 400]),
    )  # fmt: skip
    model = [keys[row, 0, index[row, visual - counts[row] :], 0].tolist() for row in range(rows)]
    left = list(counts)
    for step in range(400):
        smaller = [max(0, n - rng.choice([0, 0, 1, 3])) for n in left]
        if seed % 2:
            smaller = [smaller[0]] * rows
        for row in range(rows):
            del model[row][: left[row] - smaller[row]]
        left = smaller
        layer.evict(left)
        new = torch.full((rows, 2, 1, 4), 1e6 + step) + torch.arange(rows).view(-1, 1, 1, 1)
        live, values = layer.update(new, -new)
        for row in range(rows):
            model[row].append(1e6 + step + row)
        if rng.random() < 0.05 and seed % 2:
            beams = torch.tensor([rng.randrange(rows) for _ in range(rows)])
            layer.reorder_cache(beams)
            model = [list(model[i]) for i in beams.tolist()]
            live, values = layer.live()
        mask = layer.live_valid()
        for row in range(rows):
            shown = live[row, 1, :, 3]
            if mask is not None:
                shown = shown[mask[row]]
            assert shown.tolist() == model[row]
        assert torch.equal(values, -live)
        assert layer.get_seq_length() == visual + text + step + 1
    assert layer.keys.shape[2] < 2 * (visual + text + 400) + 300


@pytest.mark.parametrize("kv_heads", [4, 1])
@pytest.mark.parametrize("name", SETTINGS)
def test_bytes_are_predicted_to_the_byte(name: str, kv_heads: int) -> None:
    model = tiny_llava(kv_heads=kv_heads)
    inputs = prompts("tttItttt", "tItttttt")
    method = make_method(name, **SETTINGS[name])
    steps = 90
    with st3.trim(model, method) as session:
        greedy(model, inputs, steps + 1)
        cache = session.cache
        assert cache is not None
        assert cache.live_bytes == session.kv_bytes[-1]
        tensors = [x for layer in cache.layers for x in (layer.keys, layer.values)]
        storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
    assert cache.allocated_bytes == 0  # freed with the `with`
    assert session.allocated_kv_bytes == sum(storages.values())
    token = 2 * 2 * kv_heads * 16 * 4  # keys and values, rows, heads, head size, fp32
    for t in range(steps + 1):
        alive = sum(_count(method, 10, layer, t) + 7 + t for layer in range(1, 11))
        assert session.kv_bytes[t] == token * alive
        assert session.untrimmed_kv_bytes[t] == token * 10 * (71 + t)
    assert session.allocated_kv_bytes < 2.2 * max(session.kv_bytes) + token * 10 * 130


def _count(method: Method, depth: int, layer: int, t: int) -> int:
    """Visual tokens of 64, from the equations, not from the library's schedule."""
    settings: dict[str, Any] = {"ratio": 0.0, "tau": None} | SETTINGS[method.name]
    keep = 1.0
    if layer >= 4 and settings["ratio"]:
        keep = 0.5 - (layer - 3) // settings["stride"] * settings["ratio"]
    share = 1.0
    if settings["tau"]:
        x = min(t / settings["tau"], 1)
        cosine = (1 + torch.cos(torch.tensor(torch.pi * x, dtype=torch.float64)).item()) / 2
        share = 1 - x if settings.get("annealing") == "linear" else cosine
    return round(round(keep, 9) * 64 * share)


def test_a_long_answer_never_needs_more_than_its_tokens() -> None:
    """Freed slots are used again: the buffers stay near what is alive at the peak."""
    model, inputs = tiny_llava(layers=4), prompts("ttIIIIIIIIttt")  # 512 visual tokens
    with st3.trim(model, "vta", tau=100) as session:
        greedy(model, inputs, 300)
    peak = max(session.kv_bytes)
    assert peak < 1.05 * session.kv_bytes[0]
    assert session.allocated_kv_bytes < 1.15 * peak


def test_rows_that_leave_take_their_bytes_along() -> None:
    """And what is on record of the others stays theirs."""
    inputs = prompts("ttItttt", "ttItttt", "tIttttt")
    model = tiny_llava()
    with st3.trim(model, "st3", **SETTINGS["st3"]) as session:
        output = greedy(model, inputs, 6)
        cache, kept = output.past_key_values, session.kept(10, 2)
        before = cache.live_bytes
        session.record.keep_rows([0, 2])
        assert cache.live_bytes * 3 == before * 2
        assert session.kept(10, 1) == kept
        assert session.visual_tokens == (64, 64)
        model(input_ids=output.sequences[[0, 2], -1:], past_key_values=cache)
        assert session.kv_bytes[-1] == cache.live_bytes
        assert session.generated == 6
