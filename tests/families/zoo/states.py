"""Families some of whose layers keep a state instead of tokens."""

from __future__ import annotations

from families import media
from families.tiny import Tiny
from families.zoo.pieces import EXPERTS, LINEAR, MARKS, ONE, QWEN, SIZELESS, text

STATES: dict[str, Tiny] = {
    "qwen3_5": Tiny(
        "Qwen3_5Config", {"vision_config": QWEN | {"num_position_embeddings": 64}} | MARKS,
        text(**LINEAR), media.encoded_grids,
    ),
    "qwen3_5_moe": Tiny(
        "Qwen3_5MoeConfig", {"vision_config": QWEN | {"num_position_embeddings": 64}} | MARKS,
        text(**LINEAR, **EXPERTS, shared_expert_intermediate_size=32), media.encoded_grids,
    ),
    "lfm2_vl": Tiny(
        "Lfm2VlConfig",
        {"vision_config": SIZELESS
         | {"model_type": "siglip2_vision_model", "patch_size": 4, "num_patches": 64},
         "projector_hidden_size": 32} | ONE,
        text("lfm2", layer_types=["conv", "full_attention"] * 3, conv_L_cache=3), media.encoded,
    ),
}  # fmt: skip
