"""Merging in several kinds of family: dense matrices over what stock brings, then the oracle.

The matrix is made by loops from what the method says. It multiplies the embeddings that stock hands
to its decoder, and the features that a decoder adds between its layers; all that the decoder makes
of them is stock's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from families.test_before import _model, greedy
from families.zoo import ZOO
from methods.test_merging_methods import dense

import st3
from st3.families.base import visual_mask
from st3.families.parts import find_parts
from st3.methods.before import selectors
from st3.methods.selecting import Chosen
from st3.verification.compacted import compacted_logits
from st3.verification.masked import Hidden, masked_logits

CASES = [
    ("llava", "padded", "visionzip:keep=60%,contextual=0.5,tau=9"),
    ("llava_next, granite", "one", "tome:keep=40%"),  # whose decoder scales its embeddings
    ("granite4_vision", "one", "tome:keep=40%"),  # and adds features
    ("qwen3_vl", "padded", "visionzip:keep=60%,contextual=0.5,tau=9"),
    ("qwen3_vl", "filmed", "aim:keep=40%"),
    ("gemma4", "padded", "tome:keep=40%,tau=9"),  # embeddings of each layer, made of the first
    ("qwen3_5", "one", "tome:keep=40%,tau=9"),
    ("qwen2_5_vl", "filmed", "prumerge_plus:keep=40%"),
]


def brought(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """What stock hands to its decoder for a prompt."""
    found: list[dict[str, Any]] = []
    handle = find_parts(model).decoder.register_forward_pre_hook(
        lambda module, args, kwargs: found.append(kwargs), with_kwargs=True
    )
    try:
        greedy(model, inputs, 1)
    finally:
        handle.remove()
    return found[0]


def early(given: dict[str, Any]) -> dict[int, torch.Tensor]:
    """Layer -> the features added behind it, at their tokens' places [B, n, d]."""
    found: dict[int, torch.Tensor] = {}
    for name, where in (
        ("deepstack_visual_embeds", "visual_pos_masks"), ("deepstack_features", "vision_mask"),
    ):  # fmt: skip
        features = given.get(name)
        if features is None:
            continue
        mask = given[where]
        mask = mask[..., 0] if mask.dim() == 3 else mask
        layers = features if isinstance(features, Mapping) else dict(enumerate(features, 1))
        for layer, values in layers.items():
            found[layer] = values.new_zeros(*mask.shape, values.shape[-1])
            found[layer][mask] = values
    return found


@pytest.mark.parametrize(("name", "kind", "spec"), CASES)
def test_what_is_merged_is_the_dense_product(
    name: str, kind: str, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not ZOO[name].known:
        pytest.skip(f"this transformers has no {ZOO[name].config}")
    model = _model(name)
    inputs = ZOO[name].inputs(model, getattr(ZOO[name], kind))
    parts = find_parts(model)
    visual = visual_mask(parts.visual_ids, inputs["input_ids"]) & inputs["attention_mask"].bool()
    said: list[Chosen] = []
    method = selectors()[spec.partition(":")[0]]
    choose = method.choose

    def listening(self: Any, view: Any) -> Chosen:
        said.append(choose(self, view))
        return said[-1]

    monkeypatch.setattr(method, "choose", listening)
    stock = brought(model, inputs)
    with st3.trim(model, spec) as session:
        ours = greedy(model, inputs)
        record = session.record
        assert session.cache.live_bytes == session.kv_bytes[-1]  # type: ignore[union-attr]
    turn, merge = record.turns[0], said[0].merge
    assert merge is not None
    embeddings, features = stock["inputs_embeds"].detach().clone(), early(stock)
    pool = 0
    for row, sizes in enumerate(turn.prompt.pictures):
        places = visual[row].nonzero().flatten().tolist()
        for size in sizes:
            here, places = places[:size], places[size:]
            W = dense(merge, pool, size).to(embeddings.dtype)
            for values in (embeddings, *features.values()):
                values[row, here] = W.to(values.dtype) @ values[row, here]
            pool += 1
    assert turn.merged is not None
    torch.testing.assert_close(turn.merged, embeddings, atol=1e-5, rtol=1e-5)
    plain = [stock["inputs_embeds"], *early(stock).values()]
    merged = [embeddings, *features.values()]
    for one, other in zip(merged, plain, strict=True):
        assert not other[visual].any() or not torch.equal(one, other)
    assert turn.features.keys() == features.keys()
    for layer, values in features.items():
        torch.testing.assert_close(turn.features[layer], values, atol=1e-5, rtol=1e-5)
    numbers = [row.nonzero().flatten().tolist() for row in visual]
    entered = [[places[n] for n in turn.entered(row)] for row, places in enumerate(numbers)]
    answer = ours.sequences[:, inputs["input_ids"].shape[1] :]
    with torch.no_grad():
        if parts.recurrent:
            want, _ = compacted_logits(
                model, parts.decoder, inputs, answer, record.plan, visual, entered=entered[0],
                embeddings=embeddings,
            )  # fmt: skip
        else:
            hidden = Hidden(
                record.plan.schedule, record.plan.groups, visual, parts.lenders, entered=entered,
                embeddings=embeddings, features=features,
            )  # fmt: skip
            want = masked_logits(model, parts.decoder, inputs, answer, hidden)
    got = torch.stack(ours.logits, 1)
    torch.testing.assert_close(got, want.to(got.dtype), atol=1e-4, rtol=1e-5)
