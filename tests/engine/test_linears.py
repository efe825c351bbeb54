"""Products by other kernels equal torch's own, and only those that fit are taken."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from conftest import greedy, prompts, tiny_llava
from torch.nn import functional

import st3
from st3.engine import linears


@pytest.fixture
def by_onednn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """oneDNN is found faster; what it was asked for."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch has no oneDNN here")
    asked: list[Any] = []
    real = linears._onednn

    def counted(*args: Any) -> torch.Tensor:
        asked.append(args)
        return real(*args)

    monkeypatch.setattr(linears, "onednn_is_faster", lambda threads: True)
    monkeypatch.setattr(linears, "_onednn", counted)
    return asked


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_onednn_multiplies_as_torch_does(by_onednn: list[Any], bias: bool) -> None:
    torch.manual_seed(0)
    linear, states = torch.nn.Linear(48, 80, bias=bias), torch.randn(2, 7, 48)
    want = linear(states)
    with linears.fast_linears(states.device, states.dtype):
        got = linear(states)
    assert len(by_onednn) == 1
    torch.testing.assert_close(got, want)


@torch.no_grad()
def test_what_it_would_not_speed_up_is_left_to_torch(by_onednn: list[Any]) -> None:
    states, weight = torch.randn(3, 48), torch.randn(80, 48)
    turned = torch.randn(48, 80).t()
    with linears.fast_linears(states.device, states.dtype):
        functional.linear(states.bfloat16(), weight.bfloat16())
        functional.linear(states.double(), weight.double())
        functional.linear(states, turned)
    assert not by_onednn


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_one_row_as_a_sum(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    states, weight = torch.randn(1, 48).to(dtype), torch.randn(80, 48).to(dtype)
    got = linears._product(states, weight.t())
    assert got.dtype == dtype
    torch.testing.assert_close(got, (states.double() @ weight.double().t()).to(dtype))
    bias = torch.randn(80).to(dtype)
    torch.testing.assert_close(linears._product_and_bias(bias, states, weight.t()), got + bias)
    assert linears._product_and_bias(bias, states, weight.t(), beta=2) is NotImplemented
    assert linears._product(states, torch.randn(48, 80).to(dtype)) is NotImplemented


def test_the_faster_is_found_by_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(linears.onednn_is_faster(torch.get_num_threads()), bool)
    if not torch.backends.mkldnn.is_available():
        return
    slow = lambda *_: time.sleep(0.02)  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(linears, "_onednn", slow)
        assert not linears.onednn_is_faster.__wrapped__(1)
    monkeypatch.setattr(functional, "linear", slow)
    assert linears.onednn_is_faster.__wrapped__(1)


def test_a_prefill_beside_a_compiled_step(by_onednn: list[Any]) -> None:
    """It goes through oneDNN; not under autocast, which asks for other numbers."""
    model, inputs = tiny_llava(layers=4), prompts("tttItttt")
    with st3.trim(model, "st3"), torch.autocast("cpu", torch.bfloat16):
        want = greedy(model, inputs, 3)
    with st3.trim(model, "st3", compile="inductor"):
        with torch.autocast("cpu", torch.bfloat16):
            got = greedy(model, inputs, 3)
        assert not by_onednn
        greedy(model, inputs, 1)
    assert by_onednn
    assert torch.equal(got.sequences, want.sequences)
