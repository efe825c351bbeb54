"""Families on a GPU, against the masked oracle on the CPU. Without one, all of it is skipped."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import pytest
import torch
from families.test_families import METHODS, greedy
from families.zoo import ZOO
from torch.utils._pytree import tree_map

import st3
from st3.engine.recording import DecodeGraphWarning
from st3.families.base import visual_mask
from st3.families.parts import find_parts
from st3.verification.choice import Choice
from st3.verification.masked import Hidden, masked_logits

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]
CUDA = "cuda"
NAMES = [
    name
    for name, tiny in ZOO.items()
    if tiny.config
    in ("Qwen2_5_VLConfig", "Qwen3VLConfig", "Gemma3Config", "Llama4Config", "SmolVLMConfig")
]
PROMPTS = [
    (name, kind)
    for name in NAMES
    for kind in ("one", "padded", *(["filmed"] if ZOO[name].video else []))
]


def _there(inputs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    def move(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return value.to(CUDA, dtype) if value.is_floating_point() else value.to(CUDA)

    return dict(tree_map(move, inputs))


def _asked(name: str, kind: str, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    """The oracle's model on the CPU, the same on the GPU, and inputs of both; visual tokens."""
    if not ZOO[name].known:
        pytest.skip(f"this transformers has no {ZOO[name].config}")
    model = ZOO[name].build()
    if dtype != torch.float32:  # a cast to what it is would touch complex buffers
        model = model.to(dtype).float()
    inputs = ZOO[name].inputs(model, getattr(ZOO[name], kind))
    rounded = tree_map(
        lambda x: x.to(dtype).float() if torch.is_tensor(x) and x.is_floating_point() else x,
        inputs,
    )
    visual = visual_mask(find_parts(model).visual_ids, inputs["input_ids"])
    visual = visual & inputs["attention_mask"].bool()
    here = copy.deepcopy(model).to(CUDA)
    here = here if dtype == torch.float32 else here.to(dtype)
    return model, here, rounded, _there(rounded, dtype), visual


def _logits(answer: Any) -> torch.Tensor:
    return torch.stack(answer.logits, 1).cpu().float()


def _both(
    asked: tuple[Any, ...], method: str, *, given: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the GPU, trimmed, and of the oracle; which takes the GPU's choice, if `given`."""
    model, here, inputs, moved, visual = asked
    known, parameters = METHODS[method]
    with st3.trim(here, known, **parameters) as session:
        ours = greedy(here, moved)
        plan = session.record.plan
    answer = ours.sequences[:, inputs["input_ids"].shape[1] :].cpu()
    parts = find_parts(model)
    choice = Choice(told=session.kept, tolerance=math.inf) if given else Choice()
    hidden = Hidden(plan.schedule, plan.groups, visual, parts.lenders, choice)
    with torch.no_grad():
        want = masked_logits(model, parts.decoder, inputs, answer, hidden)
    return _logits(ours), want.float()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("name", "kind"), PROMPTS)
def test_trimmed_is_the_oracle(name: str, kind: str, method: str) -> None:
    got, want = _both(_asked(name, kind), method)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize(("name", "kind"), PROMPTS)
def test_untrimmed_is_stock(name: str, kind: str, graphs: bool) -> None:
    """Token for token; with recorded steps, or a word on why there are none."""
    _, here, _, moved, _ = _asked(name, kind)
    stock = greedy(here, moved)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DecodeGraphWarning)
        with st3.trim(here, "none", cuda_graphs=graphs):
            for _ in range(2):
                ours = greedy(here, moved)
    assert torch.equal(ours.sequences, stock.sequences)
    torch.testing.assert_close(_logits(ours), _logits(stock), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [n for n in NAMES if "Llama4" not in ZOO[n].config])
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    """Relative error of the logits, given the choice that half precision made."""
    got, want = _both(_asked(name, "padded", dtype), "pvtp", given=True)
    error = float((got - want).norm() / want.norm())
    assert error < (0.06 if dtype == torch.bfloat16 else 0.01)
