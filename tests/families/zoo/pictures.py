"""Families whose decoders see everything before a token: positions count one, two, three."""

from __future__ import annotations

from typing import Any

from families import encoded, media
from families.media import END, IMAGE, START, VIDEO
from families.tiny import Tiny
from families.zoo.pieces import (
    BOTH,
    CLIP,
    GRANITE,
    HEAD,
    LARGE,
    MARKS,
    OLD,
    ONE,
    PIXTRAL,
    ROUTED,
    SIGLIP,
    SIZELESS,
    TILED,
    TOWER,
    text,
)  # fmt: skip


def _ministral() -> dict[str, Any]:
    scaling = {
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0, "beta_fast": 32.0,
        "original_max_position_embeddings": 16, "llama_4_scaling_beta": 0.5, "beta_slow": 1.0,
        "mscale": 1.0, "mscale_all_dim": 1.0,
    }  # fmt: skip
    return text("ministral3", **HEAD, sliding_window=None, rope_parameters=scaling)


_INTERN = {
    "vision_config": TOWER | {"image_size": [32, 32], "patch_size": [8, 8]}, "image_seq_length": 4,
} | ONE  # fmt: skip

_SAM = TOWER | {"output_channels": 32, "window_size": 2, "global_attn_indexes": [1], "mlp_dim": 32}

PICTURES: dict[str, Tiny] = {
    "llava": Tiny(
        "LlavaConfig", {"vision_config": CLIP} | OLD | ONE, text("llama"), media.squares(16)
    ),
    "llava, qwen2": Tiny(
        "LlavaConfig", {"vision_config": CLIP} | OLD | ONE, text("qwen2"), media.squares(16)
    ),
    "pixtral-12b": Tiny(
        "LlavaConfig",
        {"vision_config": PIXTRAL, "vision_feature_layer": -1,
         "vision_feature_select_strategy": "full"} | OLD | ONE,
        text("mistral", **HEAD, sliding_window=None), media.lines,
    ),
    "llava_next": Tiny(
        "LlavaNextConfig", {"vision_config": CLIP, "image_seq_length": 16} | TILED,
        text("llama"), media.tiles(),
    ),
    "llava_next_video": Tiny(
        "LlavaNextVideoConfig",
        {"vision_config": CLIP, "image_seq_length": 16, "video_seq_length": 12,
         "video_token_index": VIDEO} | TILED,
        text("llama"), media.tiles(film=12), video=True,
    ),
    "llava_onevision": Tiny(
        "LlavaOnevisionConfig",
        {key: value for key, value in TILED.items() if key != "vision_feature_layer"}
        | {"vision_config": SIGLIP, "video_token_index": VIDEO},
        text("qwen2"), media.tiles(film=13), video=True,
    ),
    "video_llava": Tiny(
        "VideoLlavaConfig",
        {"vision_config": CLIP, "video_token_index": VIDEO, "vision_feature_layer": -1} | OLD,
        text("llama"), media.video_llava, video=True, filmed=("tVtt",),
    ),
    "internvl, qwen2": Tiny(
        "InternVLConfig", _INTERN, text("qwen2"), media.squares(4, wrapped=True)
    ),
    "internvl, qwen3": Tiny(
        "InternVLConfig", _INTERN, text("qwen3", **HEAD), media.squares(4, wrapped=True)
    ),
    "idefics3": Tiny(
        "Idefics3Config", {"vision_config": TOWER, "scale_factor": 2} | ONE, text("llama"),
        media.three_tiles,
    ),
    "smolvlm": Tiny(
        "SmolVLMConfig", {"vision_config": TOWER, "scale_factor": 2} | ONE, text("llama"),
        media.three_tiles,
    ),
    "mistral3": Tiny(
        "Mistral3Config", {"vision_config": PIXTRAL, "spatial_merge_size": 2} | OLD,
        text("mistral", **HEAD, sliding_window=None), media.lines,
    ),
    "mistral3, ministral3": Tiny(
        "Mistral3Config", {"vision_config": PIXTRAL, "spatial_merge_size": 2} | OLD,
        _ministral(), media.lines,
    ),
    "deepseek_vl": Tiny(
        "DeepseekVLConfig", {"vision_config": SIGLIP} | ONE, text("llama"), media.squares(16)
    ),
    "aria": Tiny(
        "AriaConfig",
        {"vision_config": TOWER | {"model_type": "idefics3_vision"},
         "projector_patch_to_query_dict": {16: 8}} | OLD,
        text("aria_text", moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1),
        media.squares(8),
    ),
    "lighton_ocr": Tiny(
        "LightOnOcrConfig", {"vision_config": PIXTRAL} | ONE, text("qwen3", **HEAD), media.lines
    ),
    "video_llama_3": Tiny(
        "VideoLlama3Config",
        {"vision_config": SIZELESS | {"patch_size": 4}} | BOTH,
        text("qwen2"), media.grids(), video=True,
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
        text(), media.phi4,
    ),
    "kimi_k25": Tiny(
        "Kimi_K25Config",
        {"vision_config": TOWER | {"patch_size": 4, "pos_emb_height": 8, "pos_emb_width": 8},
         "projection_hidden_size": 32} | MARKS,
        text("deepseek_v3", kv_lora_rank=16, q_lora_rank=24, qk_rope_head_dim=8,
              qk_nope_head_dim=16, v_head_dim=12, num_mtp_layers=0, **ROUTED)
        | {"num_key_value_heads": 4},
        media.grids(square=True),
    ),
    "llava_next, granite": Tiny(
        "LlavaNextConfig",
        {"vision_config": SIGLIP, "image_seq_length": 16,
         "vision_feature_select_strategy": "full"} | TILED,
        text("granite", **GRANITE), media.tiles(),
    ),
    "granite4_vision": Tiny(
        "Granite4VisionConfig",
        {
            "vision_config": SIGLIP | {"hidden_size": 64},
            "qformer_config": {
                "model_type": "blip_2_qformer", "num_hidden_layers": 1, "intermediate_size": 64,
                "cross_attention_frequency": 1, "max_position_embeddings": 64,
                "use_qformer_text_input": False,
            },
            "downsample_rate": "1/2", "deepstack_layer_map": [[1, 0], [2, 3]],
            "spatial_target_layers": [1, 2, 4, 5], "image_seq_length": 4,
            "vision_feature_select_strategy": "full",
        } | TILED,
        text("granite4_vision_text", **GRANITE), media.tiles(),
    ),
    "perception_lm": Tiny(
        # Its own tower wants timm; features come encoded here.
        "PerceptionLMConfig", {"vision_config": CLIP | {"model_args": {"embed_dim": 32}}} | BOTH,
        text("llama"), encoded.stacked, encoded=True, video=True,
    ),
    "fast_vlm": Tiny(
        "FastVlmConfig", {"vision_config": CLIP} | OLD, text("qwen2"), encoded.stacked,  # so here
        encoded=True,
    ),
    "vipllava": Tiny(
        "VipLlavaConfig", {"vision_config": CLIP, "vision_feature_layers": [-1, -2]} | OLD,
        text("llama"), media.squares(16),
    ),
    "deepseek_vl_hybrid": Tiny(
        "DeepseekVLHybridConfig",
        {"vision_config": SIGLIP,
         "high_res_vision_config": _SAM | {"model_type": "sam_vision_model"}} | ONE,
        text("llama"), media.squares(16, keys=("pixel_values", "high_res_pixel_values")),
    ),
    "janus": Tiny(
        "JanusConfig",
        {"vision_config": TOWER | {
            "mlp_ratio": 2.0, "projection_dim": 64, "num_image_tokens": 16,
        }, "vq_config": {
            "embed_dim": 8, "num_embeddings": 16, "latent_channels": 16, "base_channels": 32,
            "channel_multiplier": [1, 1], "num_res_blocks": 1, "num_patches": 4,
            "projection_dim": 64, "image_token_embed_dim": 64,
        }} | ONE,
        text("llama"), media.squares(16, wrapped=True),
    ),
    "ovis2": Tiny(
        "Ovis2Config",
        {"vision_config": TOWER | {
            "vocab_size": 20, "hidden_stride": 1, "num_visual_indicator_tokens": 5,
        }, "visual_indicator_token_ids": [90, 91, 92, START, END], "hidden_size": 64,
         "vocab_size": 100} | ONE,
        text("qwen2"), media.squares(16, wrapped=True),
    ),
    "got_ocr2": Tiny(
        "GotOcr2Config", {"vision_config": _SAM | LARGE, "image_seq_length": 4} | ONE,
        text("qwen2"), media.squares(4, size=64),
    ),
    "pp_chart2table": Tiny(
        "PPChart2TableConfig", {"vision_config": _SAM | LARGE, "image_seq_length": 4} | OLD,
        text("qwen2"), media.squares(4, size=64),
    ),
    "qianfan_ocr": Tiny(
        "QianfanOCRConfig", _INTERN, text("qwen3", **HEAD), media.squares(4, wrapped=True)
    ),
    "granite_docling": Tiny(
        "GraniteDoclingConfig",
        {"vision_config": TOWER | {
            "out_hidden_size": 64, "scale_factor": 2, "deepstack_visual_indexes": [0, 1],
        }, "pad_token_id": 0} | ONE,
        text(**HEAD, **GRANITE), media.marked_tiles,
    ),
    "fuyu": Tiny(
        "FuyuConfig", {"image_size": 32, "patch_size": 8} | ONE,
        {key: value for key, value in text("persimmon").items() if key != "num_key_value_heads"},
        media.cut_up,
    ),
}  # fmt: skip
