"""Families whose visual tokens have positions on three axes: time, height and width."""

from __future__ import annotations

from families import media
from families.media import IMAGE
from families.tiny import Tiny
from families.zoo.pieces import (
    EXPERTS,
    GLM_MARKS,
    HEAD,
    MARKS,
    MROPE,
    QWEN,
    QWEN3,
    ROPE,
    ROUTED,
    WHOLE_MROPE,
    text,
)  # fmt: skip

GRIDS: dict[str, Tiny] = {
    "qwen2_vl": Tiny(
        "Qwen2VLConfig",
        {"vision_config": {
            "depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2,
            "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2,
        }} | MARKS,
        text(**MROPE), media.grids(), video=True,
    ),
    "qwen2_5_vl": Tiny(
        "Qwen2_5_VLConfig",
        {"vision_config": QWEN | {"fullatt_block_indexes": [1, 3], "window_size": 16}} | MARKS,
        text(**MROPE), media.grids(), video=True,
    ),
    "qwen3_vl": Tiny(
        "Qwen3VLConfig", {"vision_config": QWEN3} | MARKS, text(**HEAD, **MROPE),
        media.grids(frames_apart=True), video=True,
    ),
    "qwen3_vl_moe": Tiny(
        "Qwen3VLMoeConfig", {"vision_config": QWEN3} | MARKS, text(**HEAD, **MROPE, **EXPERTS),
        media.grids(frames_apart=True), video=True,
    ),
    "glm4v": Tiny(
        "Glm4vConfig", {"vision_config": QWEN | {"depth": 2, "image_size": 32}} | GLM_MARKS,
        text(**WHOLE_MROPE), media.grids(frames_apart=True, video_id=IMAGE), video=True,
        filmed=("ttVtVtt", "tVtt"),
    ),
    "glm4v_moe": Tiny(
        "Glm4vMoeConfig", {"vision_config": QWEN | {"depth": 2, "image_size": 32}} | GLM_MARKS,
        text(**WHOLE_MROPE, **HEAD, **ROUTED), media.grids(frames_apart=True, video_id=IMAGE),
        video=True, filmed=("ttVtVtt", "tVtt"),
    ),
    "ernie4_5_vl_moe": Tiny(
        "Ernie4_5_VLMoeConfig",
        {"vision_config": {
            "depth": 2, "hidden_size": 32, "num_heads": 2, "patch_size": 4,
            "intermediate_size": 64, "spatial_merge_size": 2, "temporal_merge_size": 2,
        }} | GLM_MARKS,
        text(rope_parameters=ROPE | {"mrope_section": [3, 3, 2]}, moe_intermediate_size=[32, 32],
              moe_k=2, moe_num_experts=4, moe_num_shared_experts=1,
              mlp_layer_types=["dense"] + ["sparse"] * 5),
        media.ernie,
    ),
}  # fmt: skip
