"""A step compiled by OpenVINO equals the eager one; how a trace is cut needs no OpenVINO.

`.ci/openvino` runs all of it in an environment that has the extra.
"""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

import pytest
import torch
from conftest import greedy, prompts, tiny_llava
from families.zoo import ZOO
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

import st3
from st3.engine import openvino_code
from st3.engine.recording import DecodeGraphWarning
from st3.methods import make_method

BATCHES = {"one": ["tttItttt"], "padded": ["ttItt", "tItIttttt", "ttttt"]}
METHODS: dict[str, Any] = {"none": {}, "st3": {"tau": 9}, "fastv": {"k": 2}}
openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed"
)


@pytest.fixture(scope="module")
def model() -> Any:
    """Two groups of layers."""
    return tiny_llava(layers=4)


def _both(model: Any, inputs: Any, new: int = 8, method: str = "st3", **how: Any) -> list[Any]:
    found = []
    for compile in ("off", "openvino"):
        with warnings.catch_warnings():
            warnings.simplefilter("error", DecodeGraphWarning)
            with st3.trim(model, method, compile=compile, **how):
                found.append(greedy(model, inputs, new))
    return found


def _assert_same(found: list[Any], atol: float = 1e-4) -> None:
    want, got = found
    assert torch.equal(got.sequences, want.sequences)
    torch.testing.assert_close(
        torch.stack(got.logits), torch.stack(want.logits), atol=atol, rtol=1e-5
    )


@openvino
@pytest.mark.parametrize("rows", BATCHES)
@pytest.mark.parametrize("method", METHODS)
def test_compiled_steps_equal_eager_ones(model: Any, method: str, rows: str) -> None:
    _assert_same(_both(model, prompts(*BATCHES[rows]), 8, method, **METHODS[method]))


@openvino
@pytest.mark.parametrize("family", ["qwen2_5_vl", "internvl, qwen3", "smolvlm"])
def test_families(family: str) -> None:
    tiny = ZOO[family]
    model = tiny.build()
    inputs = tiny.inputs(model, tiny.padded)
    _assert_same(_both(model, inputs, prune_ratio=0.5, stride=1, ratio=0.15, tau=9))


@openvino
def test_bfloat16() -> None:
    model = tiny_llava(layers=3).to(torch.bfloat16)
    want, got = _both(model, prompts("tttItttt"), 4)
    torch.testing.assert_close(got.logits[1], want.logits[1], atol=0.05, rtol=0.05)


@openvino
def test_what_it_cannot_convert_is_one_line(model: Any) -> None:
    inputs, codes = prompts("tttItttt"), make_method("st3:kv_cache_dtype=int8")
    with st3.trim(model, codes):
        want = greedy(model, inputs, 8)
    with (
        pytest.warns(DecodeGraphWarning, match=r"OpenVINO cannot convert aten\."),
        st3.trim(model, codes, compile="openvino"),
    ):
        _assert_same([want, greedy(model, inputs, 8)])


@openvino
def test_prompts_of_all_lengths_share_what_was_compiled(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with st3.trim(model, "st3", compile="openvino"):
        greedy(model, prompts("tItt"), 3)
        monkeypatch.setattr(openvino_code, "_Compiled", None)  # nothing is compiled from here on
        for length in (1, 5, 40, 90, 150):
            greedy(model, prompts("tI" + length * "t"), 3)


@openvino
def test_changed_weights_are_seen() -> None:
    model = tiny_llava(layers=3)
    inputs = prompts("tttItttt")
    _both(model, inputs)
    linear = model.model.language_model.layers[1].mlp.down_proj
    linear.weight.data.add_(0.05 * torch.randn_like(linear.weight))
    _assert_same(_both(model, inputs))


def _graph(function: Any, *tensors: torch.Tensor) -> fx.GraphModule:
    return make_fx(function, tracing_mode="fake")(*tensors)


def test_a_trace_is_cut_at_its_writes() -> None:
    def function(x: torch.Tensor, buffer: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
        buffer.index_copy_(0, slot, x * 2)
        return (buffer + 1).sum(0) * x

    x, slot = torch.randn(1, 3), torch.tensor([2])
    graph = _graph(function, x, torch.zeros(4, 3), slot)
    graph.graph.eliminate_dead_code()
    whole = openvino_code._cut(graph)
    pure = [openvino_code._is_pure(piece) for piece in whole.children()]
    assert pure == [True, False, True]
    want, got = torch.ones(4, 3), torch.ones(4, 3)
    assert torch.equal(whole(x, got, slot), function(x, want, slot))
    assert torch.equal(got, want)


def test_sizes_are_counted_in_every_piece() -> None:
    def function(x: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
        size = buffer.shape[0]
        y = x.expand(size, 3) * size
        buffer.add_(y)
        return buffer.view(size * 3) / size

    x, buffer = torch.randn(1, 3), torch.ones(5, 3)
    graph = make_fx(function, tracing_mode="symbolic")(x, buffer)
    whole = openvino_code._cut(graph)
    for piece in whole.children():
        assert isinstance(piece, fx.GraphModule)
        inputs = [node for node in piece.graph.nodes if node.op == "placeholder"]
        assert all(isinstance(node.meta["val"], torch.Tensor) for node in inputs)
    got, want = torch.ones(7, 3), torch.ones(7, 3)
    torch.testing.assert_close(whole(x, got), function(x, want))
    assert torch.equal(got, want)


def test_a_view_from_before_a_write_is_refused() -> None:
    def function(x: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
        before = buffer.view(12)
        buffer.mul_(2)
        return before + x

    graph = _graph(function, torch.randn(12), torch.ones(4, 3))
    with pytest.raises(NotImplementedError, match="before it is written"):
        openvino_code._cut(graph)


def test_openvino_is_an_extra(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with (
        pytest.warns(UserWarning, match=r"OpenVINO is not here: pip install 'st3\[openvino\]'"),
        st3.trim(model, "st3", compile="openvino"),
    ):
        greedy(model, prompts("tttItttt"), 3)
