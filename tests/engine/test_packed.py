"""FlashAttention gets uneven rows end to end, and answers as SDPA does."""

from __future__ import annotations

from typing import Any

import flash
import pytest
import torch
from conftest import greedy, prompts, tiny_llava

import st3
from st3.engine.packed import Line, Packed

CUTS: dict[str, Any] = {"stride": 2, "ratio": 0.15}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the kernels are asked for."""
    return flash.play(monkeypatch)


@pytest.mark.parametrize("method", ["none", "pvtp", "st3", "vta"])
@pytest.mark.parametrize("rows", [["ttItttt"], ["ttItttt", "tItt"], ["tIttItt", "tItt", "ttttt"]])
def test_flash_attention_is_sdpa(rows: list[str], method: str, calls: list[dict[str, Any]]) -> None:
    how = {"pvtp": CUTS, "st3": CUTS | {"tau": 9}, "vta": {"tau": 9}}.get(method, {})
    model, inputs = tiny_llava(), prompts(*rows)
    with st3.trim(model, method, **how) as session:
        want, held = greedy(model, inputs), session.kv_bytes
    model.model.language_model.config._attn_implementation = "flash_attention_2"
    with st3.trim(model, method, **how) as session:
        got = greedy(model, inputs)
        assert session.kv_bytes == held
    assert torch.equal(got.sequences, want.sequences)
    torch.testing.assert_close(torch.stack(got.logits), torch.stack(want.logits), atol=1e-5, rtol=0)
    assert len(calls) == 10 * 12
    packed = [call for call in calls if call.get("cu_seq_lens_q") is not None]
    assert len(packed) == (0 if len(rows) == 1 else len(calls))
    if packed:  # no padding is computed
        tokens = int(inputs["attention_mask"].sum())
        assert int(packed[0]["cu_seq_lens_k"][-1]) == tokens
        assert int(packed[0]["cu_seq_lens_q"][-1]) == tokens
        # One line for the layers of a group.
        assert packed[0]["cu_seq_lens_k"] is packed[1]["cu_seq_lens_k"]


def test_a_later_turn_of_uneven_rows(calls: list[dict[str, Any]]) -> None:
    model, inputs = tiny_llava(), prompts("ttItttt", "tItt")
    more = {"input_ids": torch.tensor([[0, 0, 5, 6, 7], [1, 2, 3, 4, 5]])}
    mask = torch.cat((inputs["attention_mask"], torch.tensor([[0, 0, 1, 1, 1], [1] * 5])), dim=1)
    said = []
    for backend in ("sdpa", "flash_attention_2"):
        model.model.language_model.config._attn_implementation = backend
        with torch.no_grad(), st3.trim(model, "st3", **CUTS, tau=9):
            cache = model(**inputs).past_key_values
            said.append(model(**more, attention_mask=mask, past_key_values=cache).logits)
    real = mask[:, -5:].bool()
    torch.testing.assert_close(said[0][real], said[1][real], atol=1e-5, rtol=0)
    assert calls[-1]["cu_seq_lens_q"].tolist() == [0, 3, 8]


def test_a_line_and_back() -> None:
    torch.manual_seed(0)
    valid = torch.rand(3, 7) < 0.6
    valid[:, -1] = True
    line, states = Line.of(valid), torch.randn(3, 2, 7, 4)
    packed = line.put(states)
    total = int(valid.sum())
    assert torch.equal(packed[0, :, :total].transpose(0, 1), states.transpose(1, 2)[valid])
    assert line.ends.tolist() == [0, *valid.sum(1).cumsum(0).tolist()]
    back = line.back(packed.transpose(1, 2), 3)
    assert torch.equal(back, states.transpose(1, 2) * valid[:, :, None, None])
    step = Packed.of(valid, 1)
    assert step.queries.ends.tolist() == [0, 1, 2, 3]
    assert step.keys.longest == 7
