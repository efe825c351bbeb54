"""Shapes of released models at their true sizes: parameters, active ones, bytes as published."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig

from st3.families.meta import meta_model
from st3.inference.presets import known_config
from st3.methods import make_method
from st3.profiling.costs import kv_bytes
from st3.profiling.course import course_of
from st3.profiling.layers import layers_of
from st3.profiling.macs import MacCounter
from st3.profiling.shape import Workload, shape_of

_QWEN = {
    "depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16,
    "out_hidden_size": 2048, "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2,
    "num_position_embeddings": 2304,
}  # fmt: skip
_LFM = ["conv", "conv", "full_attention"] * 3 + ["conv", "full_attention"] * 3 + ["conv"]
SHAPES: dict[str, dict[str, Any]] = {
    "Qwen3-VL-30B-A3B": {
        "model_type": "qwen3_vl_moe", "image_token_id": 151655, "video_token_id": 151656,
        "text_config": {
            "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144,
            "moe_intermediate_size": 768, "num_hidden_layers": 48, "num_attention_heads": 32,
            "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128,
            "num_experts_per_tok": 8, "rope_parameters": {
                "rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20],
            },
        },
        "vision_config": _QWEN | {"deepstack_visual_indexes": [8, 16, 24]},
    },
    "Qwen3.5-35B-A3B": {
        "model_type": "qwen3_5_moe", "image_token_id": 248056, "video_token_id": 248057,
        "text_config": {
            "vocab_size": 248320, "hidden_size": 2048, "num_hidden_layers": 40,
            "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256,
            "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512,
            "num_experts": 256, "num_experts_per_tok": 8, "linear_key_head_dim": 128,
            "linear_value_head_dim": 128, "linear_num_key_heads": 16,
            "linear_num_value_heads": 32, "linear_conv_kernel_dim": 4,
            "layer_types": [*["linear_attention"] * 3, "full_attention"] * 10,
        },
        "vision_config": _QWEN,
    },
    "Kimi-K2.5": {
        "model_type": "kimi_k25", "image_token_id": 163605,
        "text_config": {
            "model_type": "deepseek_v3", "vocab_size": 163840, "hidden_size": 7168,
            "intermediate_size": 18432, "moe_intermediate_size": 2048, "num_hidden_layers": 61,
            "num_attention_heads": 64, "num_key_value_heads": 64, "n_routed_experts": 384,
            "n_shared_experts": 1, "num_experts_per_tok": 8, "first_k_dense_replace": 1,
            "n_group": 1, "topk_group": 1, "kv_lora_rank": 512, "q_lora_rank": 1536,
            "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        },
    },
    "LFM2-VL-1.6B": {
        "model_type": "lfm2_vl", "image_token_id": 396,
        "text_config": {
            "model_type": "lfm2", "vocab_size": 65536, "hidden_size": 2048,
            "intermediate_size": 12288, "block_auto_adjust_ff_dim": True,
            "block_multiple_of": 256, "block_ffn_dim_multiplier": 1.0, "num_hidden_layers": 16,
            "num_attention_heads": 32, "num_key_value_heads": 8, "conv_L_cache": 3,
            "layer_types": _LFM,
        },
        "vision_config": {
            "model_type": "siglip2_vision_model", "hidden_size": 1152, "intermediate_size": 4304,
            "num_hidden_layers": 26, "num_attention_heads": 16, "num_patches": 256,
            "patch_size": 16, "vision_use_head": False,
        },
    },
}  # fmt: skip
PUBLISHED = {
    "Qwen3-VL-30B-A3B": (31.1e9, 3.0e9), "Qwen3.5-35B-A3B": (35e9, 3.0e9),
    "Kimi-K2.5": (1.04e12, 32e9), "LFM2-VL-1.6B": (1.6e9, 1.17e9),
}  # fmt: skip
"""All parameters, and those of text that a token meets with the LM head, as the names or the cards
of the models round them."""


def _config(name: str) -> Any:
    shape = dict(SHAPES[name])
    try:
        return AutoConfig.for_model(**shape)
    except (ValueError, KeyError):
        pytest.skip(f"this transformers has no {shape['model_type']}")


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_and_macs_are_those_that_names_promise(name: str) -> None:
    """A token costs a MAC for each parameter that it meets, but for attention and norms."""
    shape = shape_of(meta_model(_config(name)))
    parameters, active = PUBLISHED[name]
    assert shape.parameters == pytest.approx(parameters, rel=0.03)
    met = shape.active_decoder_parameters + shape.head_parameters
    assert met == pytest.approx(active, rel=0.05)
    layers = layers_of(meta_model(_config(name)))
    assert sum(layer.prefill_macs(1) for layer in layers) == pytest.approx(
        shape.active_decoder_parameters, rel=0.03
    )


def test_latents_are_what_the_cache_holds() -> None:
    """512 of a latent and 64 of a rotary key a layer and token, made into 64 heads every time."""
    layers = layers_of(meta_model(_config("Kimi-K2.5")))
    assert {layer.cached for layer in layers} == {512 + 64}
    assert {layer.per_key for layer in layers} == {512 * 64 * (128 + 128)}
    assert {layer.per_pair for layer in layers} == {64 * (128 + 64 + 128)}


def test_states_beside_keys() -> None:
    """Qwen3.5: 30 layers with 32 heads of 128 x 128 in float32, and the last 4 inputs of a
    convolution over keys, queries and values; 10 with two heads of 256."""
    layers = layers_of(meta_model(_config("Qwen3.5-35B-A3B")))
    assert sum(layer.state_bytes(2) for layer in layers) == 30 * (
        4 * 32 * 128 * 128 + 2 * 4 * (2 * 16 * 128 + 32 * 128)
    )
    assert [layer.cached for layer in layers] == [0, 0, 0, 2 * 2 * 256] * 10


@pytest.mark.parametrize("method", ["none", "st3"])
def test_gemma3_beyond_its_window(method: str) -> None:
    """By hand: 40 of 48 layers see 1,024 tokens and hold 1,023 of a longer prompt."""
    config = known_config("gemma3-12b")
    counter = MacCounter(meta_model(config))
    work = Workload(visual=16 * 256, text=1200, new=5)
    schedule = make_method(method).schedule(48)
    course = course_of(counter.layers, schedule, work, pictures=16)
    weights = 3840 * (2 * 16 + 2 * 8) * 256 + 3 * 3840 * 15360
    tokens = [schedule.count(n, work.visual) + 1200 for n in range(1, 49)]
    seen = [n if number % 6 == 0 else min(n, 1024) for number, n in enumerate(tokens, 1)]
    assert counter.prefill(course) == sum(
        n * weights + 2 * n * keys * 16 * 256 for n, keys in zip(tokens, seen, strict=True)
    )
    token = 2 * 8 * 256 * 2
    held = kv_bytes(counter.layers, course, 1, 2)
    if method == "none":
        assert held == tuple(
            token * (8 * (16 * 256 + 1200 + t) + 40 * (1023 + (t > 0))) for t in range(5)
        )
    else:  # the last picture is still seen, so all wait in front of as much text as is seen
        assert held[0] == token * sum(
            n if number % 6 == 0 else n - 1200 + 1023 for number, n in enumerate(tokens, 1)
        )
