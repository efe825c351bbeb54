"""Decoding is greedy whatever a checkpoint asks of `generate`, and what it asks is said."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from conftest import PAD, prompts, tiny_llava
from transformers import GenerationConfig

import st3
from st3.inference.decoding import decode, describe, set_aside

TOKENS, LENGTHS = {"eos_token_id": 5, "pad_token_id": PAD}, {"max_new_tokens": 3, "max_length": 70}
ASKED: dict[str, dict[str, Any]] = {
    "no cache": {"use_cache": False},
    "a static cache": {"cache_implementation": "static"},
    "a quantized cache": {"cache_implementation": "quantized", "cache_config": {"nbits": 4}},
    "prefill in chunks": {"prefill_chunk_size": 16},
    "beams": {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 2.0},
    "diverse beams": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "samples": {"do_sample": True, "num_return_sequences": 3, "temperature": 9.0, "top_p": 0.5},
    "dictionaries": {"return_dict_in_generate": True, "output_scores": True, "output_logits": True},
    "insides": {"output_attentions": True, "output_hidden_states": True},
    "penalties": {"repetition_penalty": 1.9, "no_repeat_ngram_size": 1, "guidance_scale": 3.0},
    "tokens": {"suppress_tokens": list(range(50)), "forced_eos_token_id": 60, "min_new_tokens": 9},
    "lengths": {"min_length": 90, "max_time": 1e-9, "stop_strings": ["a"]},
    "speculation": {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 2},
    "a watermark": {"watermarking_config": {"bias": 9.0}},
    "contrast": {"penalty_alpha": 0.6, "top_k": 4},
}


@pytest.fixture(scope="module")
def inputs() -> dict[str, Any]:
    return prompts("ttItttt", "..Ittttt")


@pytest.fixture(scope="module")
def plain(inputs: dict[str, Any]) -> torch.Tensor:
    found: torch.Tensor = tiny_llava().generate(**inputs, max_new_tokens=6, do_sample=False)
    return found


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("method", [None, "none"])
def test_what_a_checkpoint_asks_for_changes_nothing(
    inputs: dict[str, Any], plain: torch.Tensor, asked: str, method: str | None
) -> None:
    model = tiny_llava()
    model.generation_config = GenerationConfig(
        **ASKED[asked] | {key: getattr(model.generation_config, key) for key in TOKENS}
    )
    before, kept = model.generation_config, model.generation_config.to_dict()
    with st3.trim(model, method) if method else nullcontext():
        found = decode(model, inputs, max_new_tokens=6)
    assert torch.equal(found, plain)
    assert model.generation_config is before
    assert before.to_dict() == kept
    assert set_aside(model).keys() == ASKED[asked].keys()


def test_no_option_of_transformers_is_left_open() -> None:
    """Every option that it knows, and so those of versions to come, is as if it were not asked."""
    model = tiny_llava(layers=4)
    options = vars(GenerationConfig()).keys() - TOKENS.keys() - {"transformers_version"}
    asking = {name for name in options if not name.startswith("_")}
    asking -= {"bos_token_id", "decoder_start_token_id"}
    for name in asking:
        setattr(model.generation_config, name, "asked")
    given: dict[str, Any] = {}
    model.generate = lambda **options: given.update(options)
    decode(model, {}, max_new_tokens=4)
    assert given.keys() == asking
    assert "asked" not in given.values()
    assert given["max_new_tokens"] == 4
    assert not given["do_sample"]


def test_special_tokens_are_the_checkpoints(inputs: dict[str, Any], plain: torch.Tensor) -> None:
    model = tiny_llava()
    start = inputs["input_ids"].shape[1]
    end = int(plain[0, start + 2])
    model.generation_config.eos_token_id = [98, end]
    answer = plain[0, start:].tolist()
    length = answer.index(end) + 1
    found = decode(model, inputs, max_new_tokens=6)[0, start:].tolist()
    assert found[:length] == answer[:length]
    assert set(found[length:]) <= {PAD}
    endless = decode(model, inputs, endless=True, max_new_tokens=6)
    assert torch.equal(endless, plain)


def test_what_is_set_aside_is_said_key_by_key() -> None:
    model = tiny_llava(layers=4)
    assert set_aside(model) == {}
    model.generation_config.update(**TOKENS, **LENGTHS)
    assert set_aside(model) == {}  # taken, or an option of every command
    model.generation_config.update(temperature=1.0, top_k=50, num_beams=1, use_cache=True)
    assert set_aside(model) == {}  # which is what it does
    model.generation_config.update(num_beams=3, suppress_tokens=list(range(999)))
    assert set_aside(model) == {"num_beams": 3, "suppress_tokens": list(range(999))}
    said = describe(set_aside(model))
    assert "num_beams=3, suppress_tokens=[0, 1, 2" in said
    assert len(said) < 80
