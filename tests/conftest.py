"""Small random models and prompts that the tests share."""

from __future__ import annotations

import os
import signal
import sys
import weakref

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: workers must not fight over the cores

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    Qwen2Config,
)

from st3.demo.packaging import build_processor
from st3.engine import compiled
from st3_cli import app

# A GPU's convolutions in TF32 are further from an oracle than any mistake of ours would be.
torch.backends.cudnn.allow_tf32 = False

IMAGE, PAD, VOCABULARY = 99, 0, 100
PATCHES = 64
KEPT = [576] * 3 + [288] * 3
KEPT += [count for count in (248, 207, 167, 127, 86, 46) for _ in range(4)] + [6, 6]
"""Visual tokens in each layer of the demo, and of LLaVA-1.5-7B, under ST3 by default: from layer 7
on, 7 % of 576 less every four layers."""

TEXT_CONFIGS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}


def slow(*values: Any) -> list[Any]:
    """Further values of a parameter, left out where slow tests are: the kept ones say the same."""
    return [
        pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.slow)
        for value in values
    ]


def tiny_config(
    layers: int = 10, kv_heads: int = 2, family: str = "llama", vocabulary: int = VOCABULARY
) -> LlavaConfig:
    """A LLaVA with 64 visual tokens a picture and a decoder 64 wide."""
    vision = CLIPVisionConfig(
        image_size=32,
        patch_size=4,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    )
    text = TEXT_CONFIGS[family](
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        initializer_range=0.1,
        **({"sliding_window": None} if family == "mistral" else {}),
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE,
        image_token_index=IMAGE,
        vision_feature_layer=-1,
    )


def tiny_llava(
    layers: int = 10,
    kv_heads: int = 2,
    family: str = "llama",
    backend: str = "sdpa",
    seed: int = 0,
    vocabulary: int = VOCABULARY,
) -> LlavaForConditionalGeneration:
    """Random weights, fp32, with attention that is far from uniform."""
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(tiny_config(layers, kv_heads, family, vocabulary)).eval()
    with torch.no_grad():
        model.model.language_model.embed_tokens.weight.normal_()
        for layer in model.model.language_model.layers:
            layer.self_attn.q_proj.weight.mul_(2)
    model.model.language_model.set_attn_implementation(backend)
    model.generation_config.pad_token_id = PAD
    return model


def tiny_checkpoint(folder: Path, layers: int = 6) -> Path:
    """Random weights of 64 visual tokens a picture, and a processor with the demo's tokenizer."""
    model = tiny_llava(layers=layers, vocabulary=128)  # the demo's tokenizer has 111 tokens
    processor = build_processor()
    processor.image_processor.size = processor.image_processor.crop_size = {
        "height": 32, "width": 32,
    }  # fmt: skip
    processor.patch_size = 4
    vocabulary = processor.tokenizer.get_vocab()
    model.config.image_token_index = model.config.image_token_id = vocabulary["<image>"]
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def edit(folder: Path, file: str, *without: str, **keys: Any) -> None:
    """Change keys of a JSON file of a checkpoint."""
    path = folder / file
    found = json.loads(path.read_text()) if path.exists() else {}
    kept = {key: value for key, value in found.items() if key not in without}
    path.write_text(json.dumps(kept | keys))


def prompts(*rows: str, seed: int = 0) -> dict[str, Any]:
    """Inputs for rows such as "..ttIttt": . padding, t a text token, I a picture; left-padded."""
    generator = torch.Generator().manual_seed(seed)
    lines = []
    for row in rows:
        line: list[int] = []
        for kind in row:
            if kind == "I":
                line += [IMAGE] * PATCHES
            elif kind == ".":
                line.append(PAD)
            else:
                line.append(int(torch.randint(1, IMAGE, (), generator=generator)))
        lines.append(line)
    width = max(map(len, lines))
    pictures = sum(row.count("I") for row in rows)
    inputs: dict[str, Any] = {
        "input_ids": torch.tensor([[PAD] * (width - len(x)) + x for x in lines]),
    }
    inputs["attention_mask"] = (inputs["input_ids"] != PAD).long()
    if pictures:
        inputs["pixel_values"] = torch.randn(pictures, 3, 32, 32, generator=generator)
    return inputs


@pytest.fixture
def llava() -> LlavaForConditionalGeneration:
    """Ten layers, grouped queries."""
    return tiny_llava()


def greedy(model: Any, inputs: dict[str, Any], tokens: int = 12, **more: Any) -> Any:
    """Greedy `generate` of exactly `tokens` tokens, with the logits of each."""
    return model.generate(
        **inputs,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        **{"do_sample": False, "return_dict_in_generate": True, "output_logits": True} | more,
    )


class Result:
    """Exit code, stdout and stderr of one command."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def st3_(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run `st3 ARGUMENTS` in this process, whose Ctrl-C is st3's until the test ends."""
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    handler = signal.getsignal(signal.SIGINT)

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["st3", *map(str, arguments)])
        capsys.readouterr()  # what the test itself made others print
        with pytest.raises(SystemExit) as ended:
            app.main()
        captured = capsys.readouterr()
        return Result(int(ended.value.code or 0), captured.out, captured.err)

    yield run
    signal.signal(signal.SIGINT, handler)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled code is the trace itself, as ATen runs it, and none of another test."""
    monkeypatch.setattr("torch._inductor.standalone_compile", lambda graph, *_, **__: graph)
    monkeypatch.setattr(compiled, "_CODES", {})
    monkeypatch.setattr(compiled, "_TRACED", weakref.WeakKeyDictionary())
