"""Captured attention against transformers' own, and measures against small cases by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import prompts, tiny_llava

from st3.attention.capture import capture
from st3.attention.measures import (
    KINDS,
    entropy,
    held_by,
    held_by_top,
    negligible_from,
    shares,
    similarity,
    tokens_for,
    top_overlap,
    visual_part,
)
from st3.methods import make_method


def eager_rows(model: Any, inputs: dict[str, Any], answer: list[int]) -> list[torch.Tensor]:
    """transformers' attentions of the rows that compute each new token, [layers, heads, keys]."""
    model.model.language_model.set_attn_implementation("eager")
    extra = torch.tensor([answer[:-1]], dtype=torch.long)
    more = {
        "input_ids": torch.cat((inputs["input_ids"], extra), dim=1),
        "attention_mask": torch.cat((inputs["attention_mask"], torch.ones_like(extra)), dim=1),
        "pixel_values": inputs["pixel_values"],
    }
    with torch.no_grad():
        found = torch.stack(model(**more, output_attentions=True).attentions)[:, 0]
    length = inputs["input_ids"].shape[1]
    return [found[:, :, length - 1 + t, : length + t] for t in range(len(answer))]


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("row", ["ttItttt", "...tItttt", "tItttIttt"])
def test_rows_equal_eager_attentions(row: str, kv_heads: int, backend: str) -> None:
    model, inputs = tiny_llava(kv_heads=kv_heads, backend=backend), prompts(row)
    seen: list[torch.Tensor] = []
    found = capture(
        model,
        inputs,
        make_method("none"),
        new_tokens=4,
        on_row=lambda step, whole: seen.append(whole),
    )
    expected = eager_rows(model, inputs, found.answer)
    assert len(seen) == len(expected) == 4
    for got, want in zip(seen, expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.prompt, expected[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.shares.sum(-1), torch.ones(4, 10, 4), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["st3:tau=6,stride=2", "pvtp:stride=2", "fastv", "vta:tau=5"])
@pytest.mark.parametrize("row", ["ttItttt", "...tItttIt"])
def test_trimmed_rows_lie_where_the_kept_tokens_stand(row: str, method: str) -> None:
    """Nothing on a dropped token, something on every kept one, and all of it adds up."""
    model, inputs = tiny_llava(), prompts(row)
    chosen = make_method(method)
    seen: list[torch.Tensor] = []
    found = capture(model, inputs, chosen, new_tokens=8, on_row=lambda step, x: seen.append(x))
    length = inputs["input_ids"].shape[1]
    visual = (inputs["input_ids"][0] == model.config.image_token_id).nonzero().flatten().tolist()
    text = [n for n in range(length) if n not in visual and inputs["attention_mask"][0, n]]
    assert len(seen) == 8
    for step, whole in enumerate(seen):
        assert whole.shape == (10, 4, length + step)
        torch.testing.assert_close(whole.sum(-1), torch.ones(10, 4), atol=1e-5, rtol=1e-5)
        for layer in range(1, 11):
            kept = [visual[n] for n in found.session.kept(layer, 0, step)]
            expected = sorted(kept + text + list(range(length, length + step)))
            assert whole[layer - 1, 0].nonzero().flatten().tolist() == expected


def test_the_first_group_is_untouched_by_trimming() -> None:
    model, inputs = tiny_llava(), prompts("ttItttt")
    untrimmed = capture(model, inputs, make_method("none")).prompt
    trimmed = capture(model, inputs, make_method("st3")).prompt
    torch.testing.assert_close(trimmed[:3], untrimmed[:3])
    assert not torch.allclose(trimmed[4:], untrimmed[4:], atol=1e-3)


def test_kinds() -> None:
    found = capture(tiny_llava(layers=4), prompts(".ttItItt"), make_method("none"))
    assert found.kinds.tolist() == [-1, 0, 0] + [1] * 64 + [2] + [1] * 64 + [2, 2]


def test_refusals() -> None:
    model = tiny_llava(layers=4)
    with pytest.raises(ValueError, match="no picture"):
        capture(model, prompts("tttt"), make_method("none"))
    with pytest.raises(ValueError, match="one prompt at a time, got 2"):
        capture(model, prompts("tIt", "tIt"), make_method("none"))


def test_shares_by_hand() -> None:
    kinds = torch.tensor([-1, 0, 1, 1, 1, 2, 3])
    row = torch.tensor([[0.0, 0.1, 0.2, 0.05, 0.05, 0.4, 0.2]])
    assert KINDS == ("system", "visual", "prompt", "generated")
    assert shares(row, kinds)[0].tolist() == pytest.approx([0.1, 0.3, 0.4, 0.2])
    assert visual_part(row, kinds)[0].tolist() == pytest.approx([0.2, 0.05, 0.05])


def test_concentration_by_hand() -> None:
    part = torch.tensor([[0.6, 0.1, 0.3, 0.0], [0.25, 0.25, 0.25, 0.25], [0.0, 0.0, 0.2, 0.0]])
    assert tokens_for(part).tolist() == [2, 4, 1]
    assert tokens_for(part, 0.5).tolist() == [1, 2, 1]
    assert held_by_top(part)[0].tolist() == pytest.approx([0.6, 0.9, 1, 1])
    by_hand = -sum(p * math.log(p) for p in (0.6, 0.1, 0.3)) / math.log(4)
    assert entropy(part).tolist() == pytest.approx([by_hand, 1, 0])
    assert held_by(part, [[0, 3], [1], []]) == pytest.approx([0.6, 0.25, 0])


def test_neighbours_by_hand() -> None:
    part = torch.tensor([[0.3, 0.4, 0.0, 0.0], [0.6, 0.8, 0.0, 0.0], [0.0, 0.2, 0.1, 0.0]])
    found = similarity(part)
    assert found[0, 1] == pytest.approx(1)
    assert found[1, 2] == pytest.approx(0.16 / math.sqrt(0.05))
    assert top_overlap(part, 2).tolist() == [[1, 1, 0.5], [1, 1, 0.5], [0.5, 0.5, 1]]


@pytest.mark.parametrize(
    ("layers", "answer"),
    [([0.5, 0.2, 0.01, 0.02], 3), ([0.01, 0.5, 0.01], 3), ([0.01] * 3, 1), ([0.01, 0.2], None)],
)
def test_where_the_picture_could_go(layers: list[float], answer: int | None) -> None:
    assert negligible_from(layers, 0.05) == answer
