"""FlashAttention, played on the CPU: it gets what the real one needs, and answers as SDPA does.

transformers is what it is down to the kernels; these are plain loops here, which leave what no row
reaches unwritten, as the real ones do.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch


def play(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the kernels will be asked for."""
    seen: list[dict[str, Any]] = []

    def kernels(
        query: Any, key: Any, value: Any, mask: Any, *, is_causal: bool, softmax_scale: float,
        **asked: Any,
    ) -> torch.Tensor:  # fmt: skip
        assert mask is None
        assert is_causal
        seen.append(asked | {"rows": len(query)})
        out = torch.full_like(query, float("nan"))
        assert asked["position_ids"] is None
        if asked.get("cu_seq_lens_q") is None:
            for row, states in enumerate(zip(query, key, value, strict=True)):
                out[row] = _loop(*states, softmax_scale)
            return out
        assert len(query) == 1
        queries, keys = asked["cu_seq_lens_q"].tolist(), asked["cu_seq_lens_k"].tolist()
        assert asked["cu_seq_lens_q"].dtype == asked["cu_seq_lens_k"].dtype == torch.int32
        for a, b, c, d in zip(queries, queries[1:], keys, keys[1:], strict=False):
            assert b - a <= asked["max_length_q"]
            assert d - c <= asked["max_length_k"]
            out[0, a:b] = _loop(query[0, a:b], key[0, c:d], value[0, c:d], softmax_scale)
        return out

    monkeypatch.setattr(
        "transformers.integrations.flash_attention._flash_attention_forward", kernels
    )
    return seen


def play_towers(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The same for vision towers, which look both ways; whether pictures came end to end."""
    seen: list[bool] = []

    def kernels(
        query: Any, key: Any, value: Any, mask: Any, *, is_causal: bool, softmax_scale: float,
        **asked: Any,
    ) -> torch.Tensor:  # fmt: skip
        assert mask is None
        assert not is_causal
        ends = asked.get("cu_seq_lens_q")
        seen.append(ends is not None)
        lengths = [query.shape[1]] if ends is None else ends.diff().tolist()
        pictures = zip(*(x.split(lengths, 1) for x in (query, key, value)), strict=True)
        out = []
        for q, k, v in pictures:
            logits = torch.einsum("bqhd,bkhd->bhqk", q, k) * softmax_scale
            out.append(torch.einsum("bhqk,bkhd->bqhd", logits.softmax(-1), v))
        return torch.cat(out, 1)

    monkeypatch.setattr(
        "transformers.integrations.flash_attention._flash_attention_forward", kernels
    )
    return seen


def _loop(query: Any, key: Any, value: Any, scale: float) -> torch.Tensor:
    """Of one row: the last queries [q, heads, size] of keys [k, key heads, size]."""
    heads, first = query.shape[1], len(key) - len(query)
    key, value = (x.repeat_interleave(heads // x.shape[1], 1) for x in (key, value))
    logits = torch.einsum("qhd,khd->hqk", query, key) * scale
    late = torch.arange(len(key)) > torch.arange(len(query))[:, None] + first
    return torch.einsum("hqk,khd->qhd", logits.masked_fill(late, float("-inf")).softmax(-1), value)
