"""Families whose visual tokens have positions on three axes: time, height and width."""

from __future__ import annotations

from families import encoded, media
from families.media import END, IMAGE, START, VIDEO
from families.tiny import Tiny
from families.zoo.pieces import (
    BOTH,
    EXPERTS,
    GLM_MARKS,
    GRANITE,
    HEAD,
    MARKS,
    MROPE,
    ONE,
    QWEN,
    QWEN3,
    ROPE,
    ROUTED,
    SIZELESS,
    SPARSE,
    TOWER,
    WHOLE_MROPE,
    text,
)  # fmt: skip

GLM = QWEN | {"depth": 2, "image_size": 32}
AUDIO = {
    "num_mel_bins": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32,
    "d_model": 32, "output_dim": 64,
}  # fmt: skip
AUDIO_MARKS = {"audio_start_token_id": 95, "audio_end_token_id": 94}

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
        {"vision_config": QWEN | SPARSE} | MARKS,
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
        "Glm4vConfig", {"vision_config": GLM} | GLM_MARKS,
        text(**WHOLE_MROPE), media.grids(frames_apart=True, video_id=IMAGE), video=True,
        filmed=("ttVtVtt", "tVtt"),
    ),
    "glm4v_moe": Tiny(
        "Glm4vMoeConfig", {"vision_config": GLM} | GLM_MARKS,
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
        media.ernie, video=True,
    ),
    "glm46v": Tiny(
        "Glm46VConfig", {"vision_config": GLM | {"model_type": "glm4v_vision"}} | GLM_MARKS,
        text("glm4v_text", **WHOLE_MROPE), media.grids(frames_apart=True, video_id=IMAGE),
        video=True, filmed=("ttVtVtt", "tVtt"),
    ),
    "glmga": Tiny(
        "GlmgaConfig", {"vision_config": GLM | {"model_type": "glm4v_vision"}} | GLM_MARKS,
        text("glm4v_text", **WHOLE_MROPE), media.grids(frames_apart=True, video_id=IMAGE),
        video=True, filmed=("ttVtVtt", "tVtt"),
    ),
    "glm_ocr": Tiny(
        "GlmOcrConfig", {"vision_config": GLM} | GLM_MARKS, text(**WHOLE_MROPE, **HEAD),
        media.grids(),
    ),
    "paddleocr_vl": Tiny(
        "PaddleOCRVLConfig",
        {"vision_config": TOWER | {"patch_size": 4, "spatial_merge_size": 2}} | MARKS,
        text(**HEAD, **WHOLE_MROPE), media.grids(square=True),
    ),
    "hunyuan_vl": Tiny(
        "HunYuanVLConfig",
        {"vision_config": SIZELESS | {
            "patch_size": 4, "out_hidden_size": 64, "text_hidden_size": 64,
            "num_key_value_heads": 2, "max_image_size": 64, "min_image_size": 16,
        }, "im_start_id": START, "im_end_id": END, "im_newline_id": 95} | ONE,
        text(**HEAD, rope_parameters=ROPE | {
            "rope_type": "xdrope", "alpha": 10.0, "xdrope_section": [2, 2, 2, 2], "factor": 1.0,
            "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0,
        }),
        encoded.where_taken(encoded.with_grids(4, 4)), encoded=True,
    ),
    "qwen2_5_omni_thinker": Tiny(
        "Qwen2_5OmniThinkerConfig",
        {"vision_config": QWEN | SPARSE, "audio_config": AUDIO, "image_token_index": IMAGE,
         "video_token_index": VIDEO, "audio_token_index": 93, "vision_start_token_id": START,
         "vision_end_token_id": END} | AUDIO_MARKS,
        text(**MROPE), media.grids(), video=True,
    ),
    "qwen3_omni_moe_thinker": Tiny(
        "Qwen3OmniMoeThinkerConfig",
        {"vision_config": QWEN3, "audio_config": AUDIO | {"downsample_hidden_size": 16},
         "audio_token_id": 93} | AUDIO_MARKS | MARKS,
        text(**HEAD, **MROPE, **EXPERTS), media.grids(), video=True,
    ),
    "cosmos3_edge": Tiny(
        "Cosmos3EdgeConfig",
        {"vision_config": SIZELESS | {"patch_size": 4, "num_patches": 64, "spatial_merge_size": 2},
         "projector_hidden_size": 64} | MARKS,
        text(**HEAD, **MROPE), media.grids(frames_apart=True), video=True,
    ),
    "cosmos3_omni": Tiny(
        "Cosmos3OmniConfig", {"vision_config": QWEN3 | {"model_type": "qwen3_vl_vision"}} | MARKS,
        text("qwen3_vl_text", **HEAD, **MROPE), media.grids(frames_apart=True), video=True,
    ),
    "hyperclovax_vision_v2": Tiny(
        "HyperCLOVAXVisionV2Config",
        {"vision_config": QWEN | SPARSE | {"model_type": "qwen2_5_vl_vision"}} | BOTH,
        text("hyperclovax", **HEAD, **GRANITE), media.grids(), video=True,
    ),
}  # fmt: skip
