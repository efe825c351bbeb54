"""Every family: untrimmed is stock, and trimmed is what an oracle of stock layers says."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
from conftest import greedy as any_greedy
from conftest import slow
from families.encoded import is_encoded, some_pictures
from families.zoo import ZOO

import st3
from st3.families.base import visual_mask
from st3.families.parts import find_parts
from st3.verification.compacted import compacted_logits
from st3.verification.masked import Hidden, masked_logits

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "pvtp": ("pvtp", {"prune_ratio": 0.5, "stride": 1, "ratio": 0.15}),
    "st3": ("st3", {"prune_ratio": 0.5, "stride": 1, "ratio": 0.15, "tau": 9}),
    "fastv, k=1": ("fastv", {"k": 1, "r": 0.5}),
    "fastv, k=2": ("fastv", {"k": 2, "r": 0.5}),
}
PROMPTS = [
    (name, kind)
    for name, tiny in ZOO.items()
    for kind in ("one", "padded", *(["filmed"] if tiny.video else []))
]
RECURRENT = [name for name, tiny in ZOO.items() if {*tiny.text.get("layer_types", ())} & {
    "linear_attention", "conv"
}]  # fmt: skip


def greedy(model: Any, inputs: dict[str, Any]) -> Any:
    """Answers without placeholders, which some models would look for pictures for."""
    return any_greedy(model, inputs, suppress_tokens=list(range(93, 100)))


@lru_cache(maxsize=2)
def _model(name: str) -> Any:
    return ZOO[name].build()


def _asked(name: str, kind: str) -> tuple[Any, dict[str, Any], torch.Tensor]:
    if not ZOO[name].known:
        pytest.skip(f"this transformers has no {ZOO[name].config}")
    model = _model(name)
    inputs = ZOO[name].inputs(model, getattr(ZOO[name], kind))
    assert is_encoded(model, inputs) == ZOO[name].encoded  # docs/models.md says which
    visual = visual_mask(find_parts(model).visual_ids, inputs["input_ids"])
    return model, inputs, visual & inputs["attention_mask"].bool()


@pytest.mark.parametrize(("name", "kind"), PROMPTS)
def test_untrimmed_is_stock(name: str, kind: str) -> None:
    model, inputs, visual = _asked(name, kind)
    stock = greedy(model, inputs)
    with st3.trim(model, "none") as session:
        ours = greedy(model, inputs)
        assert session.visual_tokens == tuple(visual.sum(1).tolist())
    assert torch.equal(ours.sequences, stock.sequences)
    for mine, theirs in zip(ours.logits, stock.logits, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("name", "kind"), PROMPTS)
def test_trimmed_is_the_oracle(name: str, kind: str, method: str) -> None:
    """At prefill and each of eleven steps, and the same tokens kept in every layer."""
    model, inputs, visual = _asked(name, kind)
    known, parameters = METHODS[method]
    with st3.trim(model, known, **parameters) as session:
        ours = greedy(model, inputs)
        record = session.record
        assert session.cache.live_bytes == session.kv_bytes[-1]  # type: ignore[union-attr]
    answer = ours.sequences[:, inputs["input_ids"].shape[1] :]
    parts, plan = find_parts(model), record.plan
    if name in RECURRENT and len(answer) > 1:
        pytest.skip("the compaction oracle takes one row; see the test of batches")
    with torch.no_grad():
        if name in RECURRENT:
            want, said = compacted_logits(model, parts.decoder, inputs, answer, plan, visual)
        else:
            said = Hidden(plan.schedule, plan.groups, visual, parts.lenders)
            want = masked_logits(model, parts.decoder, inputs, answer, said)
    places = [[sorted(said.alive(n, row)) for row in range(len(answer))] for n in range(1, 7)]
    got = torch.stack(ours.logits, 1)
    torch.testing.assert_close(got, want.to(got.dtype), atol=1e-4, rtol=1e-5)
    for layer, by_row in enumerate(places, 1):
        for row, alive in enumerate(by_row):
            numbers = visual[row].nonzero().flatten().tolist()
            assert session.kept(layer, row) == [numbers.index(place) for place in alive]
    assert len(session.kept(6)) < len(session.kept(1))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", RECURRENT)
def test_a_batch_is_its_rows(name: str, method: str) -> None:
    """With padding, each row is what it is alone."""
    model, inputs, _ = _asked(name, "padded")
    known, parameters = METHODS[method]
    with st3.trim(model, known, **parameters):
        both = greedy(model, inputs)
    first = 0
    for number, row in enumerate(ZOO[name].padded):
        here = inputs["attention_mask"][number].bool()
        alone = ZOO[name].inputs(model, (row,))
        alone["input_ids"] = inputs["input_ids"][number : number + 1, here]
        alone["attention_mask"] = torch.ones_like(alone["input_ids"])
        if "mm_token_type_ids" in inputs:
            alone["mm_token_type_ids"] = inputs["mm_token_type_ids"][number : number + 1, here]
        last = first + row.count("I")
        alone |= some_pictures(inputs, slice(first, last))
        first = last
        with st3.trim(model, known, **parameters):
            one = greedy(model, alone)
        assert torch.equal(one.sequences[0, -12:], both.sequences[number, -12:])
        for mine, theirs in zip(one.logits, both.logits, strict=True):
            torch.testing.assert_close(mine[0], theirs[number], atol=1e-4, rtol=1e-5)


WINDOWED = [
    name
    for name, tiny in ZOO.items()
    if tiny.text.get("sliding_window") or tiny.text.get("attention_chunk_size")
    if name not in RECURRENT
]


@pytest.mark.parametrize("method", ["st3", *slow("none", "pvtp", "vta")])
@pytest.mark.parametrize("name", WINDOWED)
def test_what_has_left_a_window_is_let_go(name: str, method: str) -> None:
    """Eighty tokens, several windows: still the oracle, and no more bytes than the windows need."""
    model, inputs, visual = _asked(name, "padded")
    parameters = METHODS["st3"][1] if method == "st3" else {"tau": 60} if method == "vta" else {}
    with st3.trim(model, method, **parameters) as session:
        ours = any_greedy(model, inputs, 80, suppress_tokens=list(range(93, 100)))
        record, cache = session.record, session.cache
        assert cache is not None
        assert cache.live_bytes == session.kv_bytes[-1]
        parts = find_parts(model)
        for number in parts.keyed:
            layer = cache.layers[number - 1]
            window = parts.windows.get(number)
            if window is not None:
                assert layer.alive <= window
                assert layer.keys.shape[2] <= max(inputs["input_ids"].shape[1], window) + 72
        if method == "none":
            assert session.kv_bytes == session.untrimmed_kv_bytes
    answer = ours.sequences[:, inputs["input_ids"].shape[1] :]
    hidden = Hidden(record.plan.schedule, record.plan.groups, visual, parts.lenders)
    with torch.no_grad():
        want = masked_logits(model, parts.decoder, inputs, answer, hidden)
    got = torch.stack(ours.logits, 1)
    torch.testing.assert_close(got, want.to(got.dtype), atol=1e-4, rtol=1e-5)
