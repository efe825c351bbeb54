"""Tiny random models of the families that are proven; windows are a few tokens wide."""

from __future__ import annotations

from typing import Any

import torch
from families import media
from families.media import END, IMAGE, START, VIDEO
from families.tiny import Tiny

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
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
ROUTED = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
TILED = OLD | {"image_grid_pinpoints": [[32, 64], [64, 32], [64, 64]], "vision_feature_layer": -1}
LINEAR = HEAD | WHOLE_MROPE | {
    "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "layer_types": ["linear_attention", "full_attention"] * 3,
}  # fmt: skip


def _text(model_type: str | None = None, **more: Any) -> dict[str, Any]:
    return TEXT | more | ({} if model_type is None else {"model_type": model_type})


def _gemma4(share: int, kinds: list[str], **more: Any) -> Tiny:
    text = _text(
        **HEAD, sliding_window=10, layer_types=kinds, vocab_size_per_layer_input=100,
        hidden_size_per_layer_input=8, num_kv_shared_layers=share, **more,
    )  # fmt: skip
    vision = {key: value for key, value in TOWER.items() if key != "image_size"} | {
        "num_key_value_heads": 2, "head_dim": 16, "patch_size": 4, "position_embedding_size": 64,
    }  # fmt: skip
    fields = BOTH | {
        "vision_config": vision, "audio_config": None, "boi_token_id": START, "eoi_token_id": END,
        "boa_token_id": 95, "eoa_token_index": 94, "audio_token_id": 93,
    }  # fmt: skip
    return Tiny(
        "Gemma4Config", fields, text, media.typed(media.encoded, key="mm_token_type_ids"),
        dtype=torch.float64, embedding=0.125, sharper=-0.5,
    )  # fmt: skip


def _ministral() -> dict[str, Any]:
    scaling = {
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0, "beta_fast": 32.0,
        "original_max_position_embeddings": 16, "llama_4_scaling_beta": 0.5, "beta_slow": 1.0,
        "mscale": 1.0, "mscale_all_dim": 1.0,
    }  # fmt: skip
    return _text("ministral3", **HEAD, sliding_window=None, rope_parameters=scaling)


_PREFIX = {"one": ("IItttt",), "padded": ("IIttttt", "Itt"), "embedding": 0.125}
_PALIGEMMA = OLD | {
    "vision_config": SIGLIP | {"projection_dim": 64}, "projection_dim": 64, "hidden_size": 64,
    "vocab_size": 100,
}  # fmt: skip
_INTERN = {
    "vision_config": TOWER | {"image_size": [32, 32], "patch_size": [8, 8]}, "image_seq_length": 4,
} | ONE  # fmt: skip

ZOO: dict[str, Tiny] = {
    "llava": Tiny(
        "LlavaConfig", {"vision_config": CLIP} | OLD | ONE, _text("llama"), media.squares(16)
    ),
    "pixtral-12b": Tiny(
        "LlavaConfig",
        {"vision_config": PIXTRAL, "vision_feature_layer": -1,
         "vision_feature_select_strategy": "full"} | OLD | ONE,
        _text("mistral", **HEAD, sliding_window=None), media.lines,
    ),
    "llava_next": Tiny(
        "LlavaNextConfig", {"vision_config": CLIP, "image_seq_length": 16} | TILED,
        _text("llama"), media.tiles,
    ),
    "llava_next, sliding mistral": Tiny(
        "LlavaNextConfig", {"vision_config": CLIP, "image_seq_length": 16} | TILED,
        _text("mistral", **HEAD, sliding_window=24), media.tiles,
    ),
    "llava_next_video": Tiny(
        "LlavaNextVideoConfig",
        {"vision_config": CLIP, "image_seq_length": 16, "video_seq_length": 12,
         "video_token_index": VIDEO} | TILED,
        _text("llama"), media.tiles, video=True,
    ),
    "llava_onevision": Tiny(
        "LlavaOnevisionConfig",
        {key: value for key, value in TILED.items() if key != "vision_feature_layer"}
        | {"vision_config": SIGLIP, "video_token_index": VIDEO},
        _text("qwen2"), media.tiles, video=True,
    ),
    "video_llava": Tiny(
        "VideoLlavaConfig",
        {"vision_config": CLIP, "video_token_index": VIDEO, "vision_feature_layer": -1} | OLD,
        _text("llama"), media.video_llava, video=True, filmed=("tVtt",),
    ),
    "qwen2_vl": Tiny(
        "Qwen2VLConfig",
        {"vision_config": {
            "depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2,
            "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2,
        }} | MARKS,
        _text(**MROPE), media.grids(), video=True,
    ),
    "qwen2_5_vl": Tiny(
        "Qwen2_5_VLConfig",
        {"vision_config": QWEN | {"fullatt_block_indexes": [1, 3], "window_size": 16}} | MARKS,
        _text(**MROPE), media.grids(), video=True,
    ),
    "qwen3_vl": Tiny(
        "Qwen3VLConfig", {"vision_config": QWEN3} | MARKS, _text(**HEAD, **MROPE),
        media.grids(frames_apart=True), video=True,
    ),
    "qwen3_vl_moe": Tiny(
        "Qwen3VLMoeConfig", {"vision_config": QWEN3} | MARKS, _text(**HEAD, **MROPE, **EXPERTS),
        media.grids(frames_apart=True), video=True,
    ),
    "qwen3_5": Tiny(
        "Qwen3_5Config", {"vision_config": QWEN | {"num_position_embeddings": 64}} | MARKS,
        _text(**LINEAR), media.encoded_grids,
    ),
    "qwen3_5_moe": Tiny(
        "Qwen3_5MoeConfig", {"vision_config": QWEN | {"num_position_embeddings": 64}} | MARKS,
        _text(**LINEAR, **EXPERTS, shared_expert_intermediate_size=32), media.encoded_grids,
    ),
    "internvl, qwen2": Tiny(
        "InternVLConfig", _INTERN, _text("qwen2"), media.squares(4, wrapped=True)
    ),
    "internvl, qwen3": Tiny(
        "InternVLConfig", _INTERN, _text("qwen3", **HEAD), media.squares(4, wrapped=True)
    ),
    "gemma3": Tiny(
        "Gemma3Config",
        {"vision_config": SIGLIP | {"patch_size": 4}, "mm_tokens_per_image": 16,
         "boi_token_index": START, "eoi_token_index": END} | OLD,
        _text(**HEAD, query_pre_attn_scalar=16, sliding_window=10, layer_types=MIXED),
        media.typed(media.squares(16, wrapped=True)), embedding=0.125,
    ),
    "gemma4": _gemma4(0, MIXED, use_bidirectional_attention="vision"),
    "gemma4, shared keys": _gemma4(2, ["sliding_attention", "full_attention"] * 3),
    "paligemma": Tiny(
        "PaliGemmaConfig", _PALIGEMMA, _text("gemma", **HEAD),
        media.typed(media.squares(16), kind=0), **_PREFIX,
    ),
    "paligemma2": Tiny(
        "PaliGemmaConfig", _PALIGEMMA,
        _text("gemma2", **HEAD, query_pre_attn_scalar=16, sliding_window=10,
              attn_logit_softcapping=5.0, final_logit_softcapping=30.0),
        media.typed(media.squares(16), kind=0), backend="eager", **_PREFIX,
    ),
    "idefics2": Tiny(
        "Idefics2Config",
        {"vision_config": TOWER, "perceiver_config": {
            "num_key_value_heads": 1, "resampler_n_latents": 8, "resampler_depth": 1,
            "resampler_n_heads": 2, "resampler_head_dim": 16, "hidden_size": 64,
        }} | ONE,
        _text("mistral", **HEAD, sliding_window=10), media.encoded,
    ),
    "idefics3": Tiny(
        "Idefics3Config", {"vision_config": TOWER, "scale_factor": 2} | ONE, _text("llama"),
        media.three_tiles,
    ),
    "smolvlm": Tiny(
        "SmolVLMConfig", {"vision_config": TOWER, "scale_factor": 2} | ONE, _text("llama"),
        media.three_tiles,
    ),
    "mistral3": Tiny(
        "Mistral3Config", {"vision_config": PIXTRAL, "spatial_merge_size": 2} | OLD,
        _text("mistral", **HEAD, sliding_window=None), media.lines,
    ),
    "mistral3, ministral3": Tiny(
        "Mistral3Config", {"vision_config": PIXTRAL, "spatial_merge_size": 2} | OLD,
        _ministral(), media.lines,
    ),
    "llama4": Tiny(
        "Llama4Config",
        {"vision_config": TOWER | {
            "intermediate_size": 128, "vision_output_dim": 64, "projector_input_dim": 64,
            "projector_output_dim": 64,
        }} | OLD,
        _text(**HEAD, intermediate_size_mlp=96, num_local_experts=4, num_experts_per_tok=1,
              attention_chunk_size=16, no_rope_layers=[1, 1, 0] * 2, floor_scale=8,
              interleave_moe_layer_step=2),
        media.squares(4, wrapped=True),
    ),
    "glm4v": Tiny(
        "Glm4vConfig", {"vision_config": QWEN | {"depth": 2, "image_size": 32}} | GLM_MARKS,
        _text(**WHOLE_MROPE), media.grids(frames_apart=True, video_id=IMAGE), video=True,
        filmed=("ttVtVtt", "tVtt"),
    ),
    "glm4v_moe": Tiny(
        "Glm4vMoeConfig", {"vision_config": QWEN | {"depth": 2, "image_size": 32}} | GLM_MARKS,
        _text(**WHOLE_MROPE, **HEAD, **ROUTED), media.grids(frames_apart=True, video_id=IMAGE),
        video=True, filmed=("ttVtVtt", "tVtt"),
    ),
    "aya_vision": Tiny(
        "AyaVisionConfig", {"vision_config": SIGLIP} | OLD,
        _text("cohere2", **HEAD, sliding_window=10, layer_types=MIXED, logit_scale=1.0),
        media.squares(4, wrapped=True),
    ),
    "cohere2_vision": Tiny(
        "Cohere2VisionConfig", {"vision_config": SIGLIP, "alignment_intermediate_size": 64} | ONE,
        _text("cohere2", **HEAD, sliding_window=10, layer_types=MIXED, logit_scale=1.0),
        media.squares(4, wrapped=True),
    ),
    "deepseek_vl": Tiny(
        "DeepseekVLConfig", {"vision_config": SIGLIP} | ONE, _text("llama"), media.squares(16)
    ),
    "kimi_k25": Tiny(
        "Kimi_K25Config",
        {"vision_config": TOWER | {"patch_size": 4, "pos_emb_height": 8, "pos_emb_width": 8},
         "projection_hidden_size": 32} | MARKS,
        _text("deepseek_v3", kv_lora_rank=16, q_lora_rank=24, qk_rope_head_dim=8,
              qk_nope_head_dim=16, v_head_dim=12, num_mtp_layers=0, **ROUTED)
        | {"num_key_value_heads": 4},
        media.encoded,
    ),
    "ernie4_5_vl_moe": Tiny(
        "Ernie4_5_VLMoeConfig",
        {"vision_config": {
            "depth": 2, "hidden_size": 32, "num_heads": 2, "patch_size": 4,
            "intermediate_size": 64, "spatial_merge_size": 2, "temporal_merge_size": 2,
        }} | GLM_MARKS,
        _text(rope_parameters=ROPE | {"mrope_section": [3, 3, 2]}, moe_intermediate_size=[32, 32],
              moe_k=2, moe_num_experts=4, moe_num_shared_experts=1,
              mlp_layer_types=["dense"] + ["sparse"] * 5),
        media.ernie,
    ),
    "aria": Tiny(
        "AriaConfig",
        {"vision_config": TOWER | {"model_type": "idefics3_vision"},
         "projector_patch_to_query_dict": {16: 8}} | OLD,
        _text("aria_text", moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1),
        media.stacked,
    ),
    "lfm2_vl": Tiny(
        "Lfm2VlConfig",
        {"vision_config": {key: value for key, value in TOWER.items() if key != "image_size"}
         | {"model_type": "siglip2_vision_model", "patch_size": 4, "num_patches": 64},
         "projector_hidden_size": 32} | ONE,
        _text("lfm2", layer_types=["conv", "full_attention"] * 3, conv_L_cache=3), media.encoded,
    ),
    "lighton_ocr": Tiny(
        "LightOnOcrConfig", {"vision_config": PIXTRAL} | ONE, _text("qwen3", **HEAD), media.encoded
    ),
    "video_llama_3": Tiny(
        "VideoLlama3Config",
        {"vision_config": {key: value for key, value in TOWER.items() if key != "image_size"}
         | {"patch_size": 4}} | BOTH,
        _text("qwen2"), media.encoded,
    ),
    "phi4_multimodal": Tiny(
        "Phi4MultimodalConfig",
        {"vision_config": TOWER | {
            "num_hidden_layers": 3, "image_size": 16, "patch_size": 4, "crop_size": 16,
            "image_token_id": IMAGE,
        }, "audio_config": {
            "hidden_size": 32, "intermediate_size": 32, "num_blocks": 1, "num_attention_heads": 2,
            "input_size": 8, "ext_pw_out_channel": 32, "depthwise_separable_out_channel": 32,
            "nemo_conv_channels": 8, "audio_token_id": 93,
        }},
        _text(), media.phi4,
    ),
}  # fmt: skip
