"""Pieces of tiny configurations that several families share."""

from __future__ import annotations

from typing import Any

from families.media import END, IMAGE, START, VIDEO

LAYERS = 6
TEXT: dict[str, Any] = {
    "vocab_size": 100, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.1,
    "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
HEAD = {"head_dim": 16}
MIXED = ["sliding_attention", "sliding_attention", "full_attention"] * 2
TOWER: dict[str, Any] = {
    "image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 64,
}  # fmt: skip
LARGE = {"image_size": 64}
SIZELESS = {key: value for key, value in TOWER.items() if key != "image_size"}
CLIP = TOWER | {"model_type": "clip_vision_model"}
SIGLIP = TOWER | {"model_type": "siglip_vision_model", "vision_use_head": False}
PIXTRAL = TOWER | {"model_type": "pixtral", "patch_size": 4}
ONE, BOTH = {"image_token_id": IMAGE}, {"image_token_id": IMAGE, "video_token_id": VIDEO}
OLD = {"image_token_index": IMAGE}
MARKS = BOTH | {"vision_start_token_id": START, "vision_end_token_id": END}
GLM_MARKS = BOTH | {
    "image_start_token_id": START, "image_end_token_id": END, "video_start_token_id": 95,
    "video_end_token_id": 94,
}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
MROPE = {"rope_parameters": ROPE | {"mrope_section": [2, 3, 3]}}
WHOLE_MROPE = {"rope_parameters": MROPE["rope_parameters"] | {"partial_rotary_factor": 1.0}}
QWEN: dict[str, Any] = {
    "depth": 4, "hidden_size": 32, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2,
    "temporal_patch_size": 2, "intermediate_size": 64, "out_hidden_size": 64,
}  # fmt: skip
QWEN3 = QWEN | {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1, 2]}
SPARSE = {"fullatt_block_indexes": [1, 3], "window_size": 16}  # towers that look through windows
GRANITE = {
    "attention_multiplier": 0.25, "embedding_multiplier": 2.0, "residual_multiplier": 0.7,
    "logits_scaling": 2.0,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
ROUTED = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
GEMMA_MARKS = BOTH | {
    "boi_token_id": START, "eoi_token_id": END, "boa_token_id": 95, "eoa_token_index": 94,
    "audio_token_id": 93,
}  # fmt: skip
TILED = OLD | {"image_grid_pinpoints": [[32, 64], [64, 32], [64, 64]], "vision_feature_layer": -1}
LINEAR = HEAD | WHOLE_MROPE | {
    "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "layer_types": ["linear_attention", "full_attention"] * 3,
}  # fmt: skip


def text(model_type: str | None = None, **more: Any) -> dict[str, Any]:
    """A text model's configuration."""
    return TEXT | more | ({} if model_type is None else {"model_type": model_type})
