"""Weights in few bits: as many bytes as predicted, and what cannot be is refused in a line."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import prompts, tiny_checkpoint, tiny_config
from families.zoo import ZOO
from torch import nn

import st3
from st3.inference import weights
from st3.inference.quantization import (
    QUANTIZATIONS,
    converted,
    find_quantization,
    quantize,
    try_on,
)
from st3.inference.random_weights import random_model
from st3.inference.weights import live_bytes, predicted_bytes

pytest.importorskip("torchao")
pytest.importorskip("bitsandbytes")
CPU = torch.device("cpu")
FAMILIES = ("llava", "qwen2_5_vl", "qwen3_vl", "gemma3", "qwen3_vl_moe", "step3p7")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("plain"))


def _logits(model: Any) -> torch.Tensor:
    inputs = prompts("ttIttt")
    inputs["input_ids"][inputs["input_ids"] == 99] = model.config.image_token_id
    with torch.no_grad():
        found: torch.Tensor = model(**inputs).logits
    return found


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_a_checkpoint_becomes_what_its_model_does_in_place(checkpoint: Path, name: str) -> None:
    quantization = QUANTIZATIONS[name]
    loaded, _ = st3.load(str(checkpoint), device="cpu", quantization=name)
    plain: Any = st3.load(str(checkpoint), device="cpu")[0]
    before = _logits(plain)
    predicted = predicted_bytes(plain.config, torch.float32, quantization)
    quantize(plain, quantization)
    assert live_bytes(loaded) == live_bytes(plain) == {"cpu": sum(predicted.values())}
    got = _logits(loaded)
    assert torch.equal(got, _logits(plain))
    assert 0 < float((got - before).norm() / before.norm()) < 0.5
    assert type(loaded.get_output_embeddings()) is nn.Linear
    assert type(loaded.get_output_embeddings().weight) is nn.Parameter
    assert all(type(x) is nn.Parameter for x in loaded.model.vision_tower.parameters())


@pytest.mark.parametrize("name", [None, *QUANTIZATIONS])
@pytest.mark.parametrize("family", FAMILIES)
def test_bytes_are_as_predicted(family: str, name: str | None) -> None:
    if not ZOO[family].known:
        pytest.skip(f"this transformers has no {ZOO[family].config}")
    model = ZOO[family].build()
    quantization = None if name is None else QUANTIZATIONS[name]
    predicted = sum(predicted_bytes(model.config, torch.float32, quantization).values())
    if quantization is not None:
        quantize(model, quantization)
    assert live_bytes(model) == {"cpu": predicted}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_random_weights_are_as_many_bytes(name: str, dtype: torch.dtype) -> None:
    config, quantization = ZOO["gemma3"].configuration(), QUANTIZATIONS[name]
    model = random_model(config, device="cpu", dtype=dtype, quantization=quantization)
    predicted = predicted_bytes(config, dtype, quantization, CPU)
    assert live_bytes(model) == {"cpu": sum(predicted.values())}
    again = random_model(config, device="cpu", dtype=dtype, quantization=quantization)
    other = random_model(config, device="cpu", dtype=dtype, seed=1, quantization=quantization)
    inputs = {"input_ids": torch.arange(1, 9)[None], "attention_mask": torch.ones(1, 8).long()}
    with torch.no_grad():
        one, same, differs = (x(**inputs).logits for x in (model, again, other))
    assert torch.equal(one, same)
    assert not torch.equal(one, differs)


def test_tied_and_offloaded_weights() -> None:
    tied = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4, device="meta")])
    tied[0].bias = tied[1].bias = None  # type: ignore[assignment]
    tied.append(nn.Linear(4, 4, bias=False))
    tied[2].weight = tied[0].weight  # type: ignore[assignment]
    assert live_bytes(tied) == {"cpu": 64, "offloaded": 64}


def test_what_is_converted() -> None:
    model = ZOO["qwen2_5_vl"].build()
    names = converted(model, QUANTIZATIONS["torchao-int8"])
    assert len(names) == 6 * 7
    assert all(name.startswith("model.language_model.layers.") for name in names)
    fewer = converted(model, QUANTIZATIONS["bnb-4bit"])  # 96 inputs are no blocks of 64
    assert names.keys() - fewer.keys() == {name for name in names if name.endswith("down_proj")}


@pytest.mark.parametrize("name", ["bnb-4bit", "bnb-8bit", "torchao-int8"])
def test_a_quantised_checkpoint_is_loaded_as_it_is(
    checkpoint: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = st3.load(str(checkpoint), device="cpu", quantization=name)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, _ = st3.load(str(tmp_path), device="cpu")
    assert live_bytes(again) == live_bytes(model)
    assert torch.equal(_logits(again), _logits(model))
    with pytest.raises(ValueError, match=r"is quantised already, by .*leave the quantization out"):
        st3.load(str(tmp_path), quantization="torchao-int8-dynamic")
    package = QUANTIZATIONS[name].package
    monkeypatch.setattr(importlib.util, "find_spec", lambda found: None)
    with pytest.raises(ValueError, match=rf'needs {package}: pip install "st3\[quantization\]"'):
        st3.load(str(tmp_path))


def test_names_and_packages(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="unknown quantization 'int3'; known: bnb-4bit, bnb-8bit"):
        st3.load(str(checkpoint), quantization="int3")
    assert find_quantization("torchao-int4").package == "torchao"
    monkeypatch.setattr(importlib.util, "find_spec", lambda found: None)
    with pytest.raises(ValueError, match=r'needs torchao: pip install "st3\[quantization\]"'):
        st3.load(str(checkpoint), quantization="torchao-int8")


def test_the_device_is_asked() -> None:
    """By a small layer, not by a list: the meta device computes nothing in four bits."""
    with pytest.raises(ValueError, match=r"torchao-int4 does not work on meta in bfloat16 \(.+\)"):
        try_on(QUANTIZATIONS["torchao-int4"], torch.device("meta"), torch.bfloat16)
    for quantization in QUANTIZATIONS.values():
        try_on(quantization, CPU, torch.bfloat16)


def test_a_model_with_nothing_to_convert() -> None:
    config = tiny_config(layers=4)
    config.text_config.hidden_size = config.text_config.intermediate_size = 48
    with pytest.raises(ValueError, match=r"bnb-4bit converts nothing here.*multiples of 64 and 32"):
        random_model(config, device="cpu", quantization=QUANTIZATIONS["bnb-4bit"])
    random_model(config, device="cpu", quantization=QUANTIZATIONS["bnb-8bit"])


def test_too_little_memory_is_said_before_weights_are_read(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(checkpoint, folder)
    (folder / "model.safetensors").write_bytes(b"these are never read")
    monkeypatch.setattr(weights, "free_memory", lambda device: 500_000)
    with pytest.raises(ValueError, match="does not fit") as refused:
        st3.load(str(folder), device="cpu", dtype="float32")
    said = str(refused.value)
    assert "915.3 kB on cpu in float32, 500 kB are free, 415.3 kB too little" in said
    assert "dtype bfloat16 would need 457.9 kB" in said
    monkeypatch.setattr(weights, "free_memory", lambda device: 300_000)
    with pytest.raises(ValueError, match="quantization torchao-int8 would need"):
        st3.load(str(folder), device="cpu", dtype="bfloat16")
    monkeypatch.setattr(weights, "free_memory", lambda device: 1000)
    with pytest.raises(ValueError, match=r"in torchao-int4 and bfloat16.*no quantization would"):
        st3.load(str(folder), device="cpu", dtype="bfloat16", quantization="torchao-int4")
    with pytest.raises(ValueError, match="give it less in the device map"):
        st3.load(str(folder), device_map={"": "cpu", "model.language_model.layers.0": "disk"})


def test_packages_are_not_imported_before_they_are_used() -> None:
    """bitsandbytes, that is: transformers itself imports torchao where it is installed."""
    code = (
        "import sys, st3.inference.quantization, st3.inference.weights, st3.inference.loading; "
        "assert 'bitsandbytes' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
