"""Families some of whose layers keep a state instead of tokens."""

from __future__ import annotations

from families import media
from families.tiny import Tiny
from families.zoo.pieces import BOTH, EXPERTS, HEAD, LINEAR, MARKS, ONE, QWEN, SIZELESS, TOWER, text

_MINICPM = BOTH | {"vision_config": TOWER | {"insert_layer_id": 0}, "insert_layer_id": 0}

STATES: dict[str, Tiny] = {
    "qwen3_5": Tiny(
        "Qwen3_5Config", {"vision_config": QWEN | {"num_position_embeddings": 64}} | MARKS,
        text(**LINEAR), media.grids(frames_apart=True), video=True, filmed=("ttVtItt",),
    ),
    "qwen3_5_moe": Tiny(
        "Qwen3_5MoeConfig", {"vision_config": QWEN | {"num_position_embeddings": 64}} | MARKS,
        text(**LINEAR, **EXPERTS, shared_expert_intermediate_size=32),
        media.grids(frames_apart=True), video=True, filmed=("ttVtItt",),
    ),
    "lfm2_vl": Tiny(
        "Lfm2VlConfig",
        {"vision_config": SIZELESS
         | {"model_type": "siglip2_vision_model", "patch_size": 4, "num_patches": 64},
         "projector_hidden_size": 32} | ONE,
        text("lfm2", layer_types=["conv", "full_attention"] * 3, conv_L_cache=3), media.shapes,
    ),
    "minicpmv4_6": Tiny(
        "MiniCPMV4_6Config", _MINICPM, text("qwen3_5_text", **LINEAR),
        media.packed(4), video=True, filmed=("ttVtItt",),
    ),
    "minicpmv4_7": Tiny(
        "MiniCPMV4_7Config", _MINICPM, text("qwen3_5_text", **LINEAR),
        media.typed(media.packed(4), key="mm_token_type_ids"), video=True, filmed=("ttVtItt",),
    ),
    "minicpm_ocr": Tiny(
        "MiniCPMOcrConfig", _MINICPM, text("qwen3_5_text", **LINEAR),
        media.packed(16),
    ),
    "lfm3_vl": Tiny(
        "Lfm3VlConfig",
        {"vision_config": SIZELESS | {"patch_size": 4, "num_key_value_heads": 2},
         "projector_hidden_size": 32} | MARKS,
        text("lfm3", **HEAD, layer_types=["conv", "full_attention", "sliding_attention"] * 2,
             conv_L_cache=3, sliding_window=10),
        media.grids(),
    ),
}  # fmt: skip
