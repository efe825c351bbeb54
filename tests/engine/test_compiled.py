"""Compiled decode steps equal eager ones; code is shared, fits all lengths, and its loss is none.

Eager steps are what the oracles prove. Models here are alike, so that few pieces are compiled; what
is different is traced alone, and ATen runs the trace: inductor has tests of its own.
"""

from __future__ import annotations

import copy
import random
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import greedy, prompts, slow, tiny_llava
from families.zoo import ZOO
from torch import nn

import st3
from st3.engine import compiled, compilers
from st3.engine.inductor_code import Inductor
from st3.engine.linears import onednn_is_faster
from st3.engine.recording import DecodeGraphWarning
from st3.inference.quantization import QUANTIZATIONS, quantize

BATCHES = {"one": ["tttItttt"], "padded": ["ttItt", "tItIttttt", "ttttt"]}
METHODS: dict[str, Any] = {"none": {}, "st3": {"tau": 15}, "vta": {"tau": 15}, "fastv": {"k": 2}}


@pytest.fixture(scope="module")
def model() -> Any:
    """Six layers that compute alike."""
    return tiny_llava(layers=6)


def _both(model: Any, inputs: Any, new: int = 12, method: str = "st3", **how: Any) -> list[Any]:
    """Answers by eager and by compiled steps; no warning."""
    found = []
    for compile in ("off", "inductor"):
        with warnings.catch_warnings():
            warnings.simplefilter("error", DecodeGraphWarning)
            with st3.trim(model, method, compile=compile, **how) as session:
                found.append(greedy(model, inputs, new))
                found[-1].kv_bytes = session.kv_bytes
    return found


def _assert_same(found: list[Any]) -> None:
    want, got = found
    assert torch.equal(got.sequences, want.sequences)
    torch.testing.assert_close(
        torch.stack(got.logits), torch.stack(want.logits), atol=1e-4, rtol=1e-5
    )
    assert got.kv_bytes == want.kv_bytes


@pytest.mark.parametrize("rows", BATCHES)
@pytest.mark.parametrize("method", ["none", "st3", *slow("vta", "fastv")])
def test_compiled_steps_equal_eager_ones(model: Any, method: str, rows: str) -> None:
    before = compiled.compiled()
    _assert_same(_both(model, prompts(*BATCHES[rows]), 12, method, **METHODS[method]))
    # All layers share one piece; the head has another.
    assert compiled.compiled() - before <= 2
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("rows", BATCHES)
@pytest.mark.parametrize("family", ["smolvlm", *slow("qwen2_5_vl", "internvl, qwen3", "idefics3")])
def test_families(family: str, rows: str) -> None:
    """By inductor's own code."""
    tiny = ZOO[family]
    model = tiny.build()
    inputs = tiny.inputs(model, getattr(tiny, rows))
    _assert_same(_both(model, inputs, prune_ratio=0.5, stride=1, ratio=0.15, tau=9))


@pytest.mark.parametrize("rows", BATCHES)
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_cache_of_codes(traced: None, kind: str, rows: str) -> None:
    model = tiny_llava(layers=6).double()  # noise would turn codes to their neighbours
    _assert_same(_both(model, prompts(*BATCHES[rows]), 12, kv_cache_dtype=kind))


@pytest.mark.parametrize("first", [True, False])
def test_inference_mode(traced: None, model: Any, first: bool) -> None:
    inputs = prompts("tttItttt")
    want = greedy_under(model, inputs, "off")
    with warnings.catch_warnings():
        warnings.simplefilter("error", DecodeGraphWarning)
        with st3.trim(model, "st3", tau=15, compile="inductor"):
            for inside in (first, not first):
                with torch.inference_mode(inside):
                    assert torch.equal(greedy(model, inputs, 12).sequences, want)
    assert compiled.compiled()


def greedy_under(model: Any, inputs: Any, compile: str) -> torch.Tensor:
    """Twelve tokens."""
    with st3.trim(model, "st3", tau=15, compile=compile):
        found: torch.Tensor = greedy(model, inputs, 12).sequences
    return found


def test_a_model_that_changes_between_answers(traced: None) -> None:
    found = []
    for compile in ("off", "inductor"):
        model, inputs = tiny_llava(layers=3), prompts("tttItttt")
        projection = model.model.language_model.layers[1].mlp.down_proj
        with st3.trim(model, "st3", tau=15, compile=compile) as session:
            greedy(model, inputs, 3)
            projection.weight = nn.Parameter(projection.weight.detach() * 3)
            model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach() * 2)
            found.append(greedy(model, inputs, 12))
            found[-1].kv_bytes = session.kv_bytes
    _assert_same(found)


class Configured(nn.Module):
    """A factor in a configuration."""

    def __init__(self, inner: nn.Module, config: Any) -> None:
        super().__init__()
        self.inner, self.config = inner, config

    def forward(self, states: torch.Tensor) -> Any:
        return self.inner(states) * self.config.factor


def test_a_configuration_that_changes(traced: None) -> None:
    model, config = tiny_llava(layers=2), SimpleNamespace(factor=0.0, module=nn.Linear)
    for layer in model.model.language_model.layers:
        layer.mlp = Configured(layer.mlp, config)
    for config.factor in (2.0, -3.0):
        _assert_same(_both(model, prompts("tttItttt"), tau=15))


def test_a_function_that_changes(traced: None) -> None:
    model = tiny_llava(layers=2)
    for function in (nn.functional.silu, torch.relu):
        for layer in model.model.language_model.layers:
            layer.mlp._modules.pop("act_fn", None)
            layer.mlp.act_fn = function
        _assert_same(_both(model, prompts("tttItttt"), tau=15))


def test_a_forward_that_somebody_puts_in_place_stays(model: Any) -> None:
    def forward(*args: Any) -> Any:
        return type(head).forward(head, *args)

    head = model.lm_head
    try:
        with st3.trim(model, "st3", compile="inductor"):
            head.forward = forward
            del model.model.language_model.layers[0].forward
        assert head.forward is forward
    finally:
        del head.forward


def test_hooks_below_a_layer_run(traced: None) -> None:
    model, inputs = tiny_llava(layers=3), prompts("tttItttt")
    seen: list[type] = []
    with st3.trim(model, "st3", tau=15, compile="inductor"):
        greedy(model, inputs, 3)
        mlp = model.model.language_model.layers[1].mlp
        handle = mlp.register_forward_hook(lambda *call: seen.append(type(call[-1])))
        with pytest.warns(DecodeGraphWarning, match=r"compiled step: mlp of \w+ has a hook$"):
            greedy(model, inputs, 12)
        handle.remove()
    assert seen == [torch.Tensor] * 12


def test_weights_that_are_dropped_by_chance(traced: None) -> None:
    model = tiny_llava(layers=2).train()
    for layer in model.model.language_model.layers:
        layer.self_attn.attention_dropout = 0.5
    with pytest.warns(DecodeGraphWarning, match=r"compiled step: attention that drops weights"):
        greedy_under(model, prompts("tttItttt"), "inductor")


def test_a_copy_of_the_model_has_its_own_head(traced: None) -> None:
    model, inputs = tiny_llava(layers=2), prompts("tttItttt")
    with st3.trim(model, "st3", tau=15, compile="inductor"):
        greedy(model, inputs, 3)
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.lm_head.weight.neg_()
        got = greedy(other, inputs, 6)
    assert torch.equal(got.sequences, greedy(other, inputs, 6).sequences)


def test_nothing_is_traced_again_in_another_with(traced: None) -> None:
    model, inputs = tiny_llava(layers=2), prompts("tttItttt")
    for _ in range(3):
        greedy_under(model, inputs, "inductor")
        assert {len(codes) for codes in compiled._TRACED.values()} == {1}


def test_other_threads_in_the_middle_of_an_answer(
    traced: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = tiny_llava(layers=2), prompts("ttItt", "tItIttttt")
    want = greedy_under(model, inputs, "off")
    onednn_is_faster.cache_clear()
    compiling, real = [], compiled.piece

    def number_two(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if ids.shape[1] == inputs["input_ids"].shape[1] + 3:
            torch.set_num_threads(2)
        return scores

    def piece(*args: Any) -> Any:
        compiling.append(torch.get_num_threads())
        if fails and compiling[-1] == 2:
            raise RuntimeError("no compiler any more")
        return real(*args)

    monkeypatch.setattr("st3.engine.compiled_layers.piece", piece)
    before = torch.get_num_threads()
    try:
        for fails in (False, True):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", DecodeGraphWarning)
                with st3.trim(model, "st3", tau=15, compile="inductor"):
                    got = greedy(model, inputs, 12, logits_processor=[number_two])
            torch.set_num_threads(before)
            assert torch.equal(got.sequences, want)
            assert 2 in compiling
            said = [str(x.message) for x in caught]
            whole = "decoding goes on without a compiled step: no compiler any more"
            assert said == ([whole] if fails else [])
            compiling.clear()
    finally:
        torch.set_num_threads(before)


def test_quantised_weights(traced: None) -> None:
    model = tiny_llava(layers=6)
    quantize(model, QUANTIZATIONS["torchao-int8"])
    _assert_same(_both(model, prompts("tttItttt"), 12))


def test_nothing_is_compiled_again(model: Any) -> None:
    """For 200 prompts of other lengths and pictures, answers that wrap around, and batches."""
    draw = random.Random(0)
    lengths = [
        "t" * draw.randrange(1, 60) + "I" * draw.randrange(3) + "t" * draw.randrange(1, 60)
        for _ in range(206)
    ]
    with st3.trim(model, "st3", tau=15, compile="inductor"):
        for rows in (["ttItt"], ["ttItt", "tItt"]):
            greedy(model, prompts(*rows), 2)
        before = compiled.compiled()
        for number, prompt in enumerate(lengths):
            rows = (
                [prompt]
                if number % 4
                else [prompt, *lengths[number + 1 : number + 1 + draw.randrange(1, 5)]]
            )
            greedy(model, prompts(*rows), 3)
        greedy(model, prompts("ttItt"), 150)
    assert compiled.compiled() == before


class Scaled(nn.Module):
    """A factor in plain Python, one that is a weight, and a table that is written."""

    def __init__(self, factor: float, width: int = 4) -> None:
        super().__init__()
        self.factor = factor
        self.weight = nn.Parameter(torch.rand(width))

    def forward(self, states: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        table[0] += self.weight
        return states * self.weight * self.factor


def _scaled(module: nn.Module, rows: int) -> tuple[Any, torch.Tensor, torch.Tensor]:
    states, table = torch.rand(rows, 4), torch.zeros(2, 4)

    def call(module: nn.Module, tensors: list[torch.Tensor]) -> Any:
        return module(*tensors)

    tensors, dims = [states, table], [frozenset({0}), frozenset[int]()]
    with torch.no_grad():
        return compiled.piece(Inductor(), module, call, tensors, dims, "test"), states, table


def test_modules_that_compute_alike_share_code() -> None:
    before = compiled.compiled()
    modules = [Scaled(3.0), Scaled(3.0), Scaled(5.0)]
    for module in modules:
        weight = module.weight
        for rows in (7, 9):
            piece, states, table = _scaled(module, rows)
            got = piece([states, table])
            torch.testing.assert_close(got, (states * weight * module.factor).detach())
            torch.testing.assert_close(table, torch.stack((weight, torch.zeros(4))).detach())
        assert module.weight is weight
    assert compiled.compiled() - before == 2


def test_code_reads_no_tensor_that_it_was_not_given() -> None:
    outside = torch.rand(3, 4)

    def call(module: nn.Module, tensors: list[torch.Tensor]) -> Any:
        return module(tensors[0] + outside, tensors[1])

    tensors = [torch.rand(3, 4), torch.zeros(2, 4)]
    with (
        pytest.raises(Exception, match="convert all Tensors to FakeTensors"),
        torch.no_grad(),
    ):
        compiled.piece(Inductor(), Scaled(2.0), call, tensors, [frozenset()] * 2, "test")


def test_a_head_that_cannot_be_compiled(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, real = prompts("tttItttt"), compiled.piece
    want = _both(model, inputs, tau=15)[0].sequences

    def fail(maker: Any, module: Any, *args: Any) -> Any:
        if module is model.lm_head:
            raise RuntimeError("no head")
        return real(maker, module, *args)

    monkeypatch.setattr("st3.engine.compiled_layers.piece", fail)
    with (
        pytest.warns(UserWarning, match=r"without a compiled head: no head$"),
        st3.trim(model, "st3", tau=15, compile="inductor"),
    ):
        assert torch.equal(greedy(model, inputs, 12).sequences, want)


@pytest.mark.parametrize("found", ["off", "inductor"])
def test_auto_measures_once_and_remembers(
    model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, found: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "not there yet"))
    timed: list[Any] = []

    def seconds(step: Any, way: Any) -> float:
        step(way)
        timed.append(way)
        slow = way == model.model.language_model.forward.forward
        return float(slow == (found == "inductor"))

    monkeypatch.setattr(compilers, "_seconds", seconds)
    inputs = prompts("tttItttt")
    want = _both(model, inputs, tau=15)[0].sequences
    for _ in range(2):
        with st3.trim(model, "st3", tau=15, compile="auto"):
            for _ in range(2):
                assert torch.equal(greedy(model, inputs, 12).sequences, want)
    assert len(timed) == 2


def test_auto_where_nothing_can_be_written(
    model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    compilers.remember("here", "off")
    assert compilers.recall("here") is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compilers.remember("here", "off")
    compilers.remember("there", "inductor")
    assert compilers.recall("here") == "off"
    (tmp_path / "st3" / "compilers.json").write_text("{", encoding="utf-8")
    assert compilers.recall("here") is None


@pytest.mark.parametrize("text", ["[]", "3", "null", '{"here": 3}'])
def test_notes_of_auto_that_are_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "st3").mkdir()
    (tmp_path / "st3" / "compilers.json").write_text(text, encoding="utf-8")
    assert compilers.recall("here") is None
    compilers.remember("here", "off")
    assert compilers.recall("here") == "off"


def test_auto_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    compilers.remember("here", "off")
    assert compilers.recall("here") is None
