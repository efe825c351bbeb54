"""Trimmed generation equals a full-length forward that hides the dropped tokens (DESIGN 5.2)."""

from __future__ import annotations

import pytest
import torch
from conftest import greedy, prompts, tiny_llava
from oracle import Setting, cosine, oracle_logits

import st3

PVTP = {"prune_ratio": 0.5, "stride": 2, "ratio": 0.15}
CASES = {
    "pvtp": (PVTP, Setting(0.5, 2, 0.15)),
    "vta": ({"tau": 10}, Setting(share=cosine(10))),
    "st3": (PVTP | {"tau": 9}, Setting(0.5, 2, 0.15, cosine(9))),
}
ROWS = {
    "one": ["tttItttt"],
    "padded": ["ttItttttttt", "tttItt", "tItttt"],
    "two pictures": ["ttIttItttt"],
    "padding alone": ["...ttIttt"],
    "equal rows, padded": ["..tItttt", "..tttItt"],
    "ragged": ["ttItt", "tItIttttt", "ttttt"],
}


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", CASES)
def test_prefill_and_every_decode_step(name: str, rows: str, kv_heads: int, backend: str) -> None:
    parameters, setting = CASES[name]
    model = tiny_llava(kv_heads=kv_heads, backend=backend)
    inputs = prompts(*ROWS[rows])
    prompt = inputs["input_ids"].shape[1]
    with st3.trim(model, name, **parameters) as session:
        result = greedy(model, inputs)
    answer = result.sequences[:, prompt:]
    with torch.no_grad():
        expected, kept = oracle_logits(model, inputs, answer, setting)
    got = torch.stack(result.logits, dim=1)
    torch.testing.assert_close(got, expected.float(), atol=1e-5, rtol=1e-5)
    visual = inputs["input_ids"] == model.config.image_token_id
    for row in range(len(answer)):
        numbers = (visual[row].long().cumsum(0) - 1).tolist()
        for layer in range(1, session.layers + 1):
            assert session.kept(layer, row) == [numbers[i] for i in kept[row][layer - 1]]


def test_rows_whose_counts_differ_only_later() -> None:
    """64 and 62 visual tokens: 32 and 31 at layer 4, 16 and 16 in between, then apart again."""
    model, inputs = tiny_llava(), prompts("ttItttt", "ttItttt")
    inputs["attention_mask"][1, 10:12] = 0  # in the middle of the picture
    with st3.trim(model, "st3", stride=2, ratio=0.0, tau=12) as session:
        result = greedy(model, inputs)
    answer = result.sequences[:, inputs["input_ids"].shape[1] :]
    with torch.no_grad():
        expected, _ = oracle_logits(model, inputs, answer, Setting(0.5, 2, 0.0, cosine(12)))
    assert session.visual_tokens == (64, 62)
    got = torch.stack(result.logits, dim=1)
    torch.testing.assert_close(got, expected.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["mistral", "qwen2"])
def test_other_decoders(family: str) -> None:
    model = tiny_llava(family=family)
    parameters, setting = CASES["st3"]
    inputs = prompts("tttItttt", "tItt")
    with st3.trim(model, "st3", **parameters):
        result = greedy(model, inputs)
    answer = result.sequences[:, inputs["input_ids"].shape[1] :]
    with torch.no_grad():
        expected, _ = oracle_logits(model, inputs, answer, setting)
    got = torch.stack(result.logits, dim=1)
    torch.testing.assert_close(got, expected.float(), atol=1e-5, rtol=1e-5)


def test_512_new_tokens() -> None:
    """Buffers slide, and at the end nothing of the picture is left; two rows, padded."""
    model, inputs = tiny_llava(layers=6), prompts("ttItttt", "tItt")
    with st3.trim(model, "st3", max_new_tokens=512, **PVTP | {"tau": 200}) as session:
        result = greedy(model, inputs, 512)
        assert session.cache is not None
        assert max(session.kept_per_layer(generated=511)) == 0
    answer = result.sequences[:, inputs["input_ids"].shape[1] :]
    with torch.no_grad():
        expected, _ = oracle_logits(model, inputs, answer, Setting(0.5, 2, 0.15, cosine(200)))
    got = torch.stack(result.logits, dim=1)
    torch.testing.assert_close(got, expected.float(), atol=2e-5, rtol=1e-5)
    # Never more slots than are alive at once, the slack for sliding, and rounding to 8.
    text = 7 if len(inputs["input_ids"]) == 2 else 0
    most = 0
    for layer in range(1, 7):
        alive = [session.kept_per_layer(0, t)[layer - 1] + text + t for t in range(513)]
        most += max(alive) + 32 + 7
    token = 2 * 2 * 2 * 16 * 4  # keys and values, rows, key heads, head size, fp32
    assert session.allocated_kv_bytes <= token * most


@pytest.mark.slow
def test_2880_visual_tokens() -> None:
    """As many as LLaVA-NeXT's five tiles, beside a row with a fifteenth of that."""
    model = tiny_llava(layers=6)
    inputs = prompts("tt" + "I" * 45 + "ttt", "tIIItttt")
    with st3.trim(model, "st3", **PVTP | {"tau": 20}) as session:
        result = greedy(model, inputs, 16)
    assert session.visual_tokens == (2880, 192)
    answer = result.sequences[:, inputs["input_ids"].shape[1] :]
    with torch.no_grad():
        expected, _ = oracle_logits(model, inputs, answer, Setting(0.5, 2, 0.15, cosine(20)))
    got = torch.stack(result.logits, dim=1)
    torch.testing.assert_close(got, expected.float(), atol=2e-5, rtol=1e-5)
