"""Families whose layers see a window or a chunk, a few tokens wide, or a picture at once."""

from __future__ import annotations

from typing import Any

import torch
from families import encoded, media
from families.media import END, IMAGE, START
from families.tiny import Tiny
from families.zoo.pieces import (
    BOTH,
    CLIP,
    GEMMA_MARKS,
    HEAD,
    LARGE,
    MIXED,
    OLD,
    ONE,
    QWEN,
    ROPE,
    SIGLIP,
    SIZELESS,
    SPARSE,
    TILED,
    TOWER,
    text,
)  # fmt: skip


def _gemma4(share: int, kinds: list[str], **more: Any) -> Tiny:
    decoder = text(
        **HEAD, sliding_window=10, layer_types=kinds, vocab_size_per_layer_input=100,
        hidden_size_per_layer_input=8, num_kv_shared_layers=share, **more,
    )  # fmt: skip
    vision = SIZELESS | {
        "num_key_value_heads": 2, "head_dim": 16, "patch_size": 4, "position_embedding_size": 64,
    }  # fmt: skip
    fields = GEMMA_MARKS | {"vision_config": vision, "audio_config": None}
    return Tiny(
        "Gemma4Config", fields, decoder, media.typed(encoded.listed, key="mm_token_type_ids"),
        encoded=True, video=True, dtype=torch.float64, embedding=0.125, sharper=-0.5,
    )  # fmt: skip


_PREFIX = {"one": ("IItttt",), "padded": ("IIttttt", "Itt"), "embedding": 0.125}
_PALIGEMMA = OLD | {
    "vision_config": SIGLIP | {"projection_dim": 64}, "projection_dim": 64, "hidden_size": 64,
    "vocab_size": 100,
}  # fmt: skip

_GEMMA3 = OLD | {
    "vision_config": SIGLIP | {"patch_size": 4}, "mm_tokens_per_image": 16,
    "boi_token_index": START, "eoi_token_index": END,
}  # fmt: skip
_MUSE = BOTH | {
    "vision_config": SIZELESS | {"patch_size": 4, "pos_emb_height": 8, "pos_emb_width": 8},
    "out_hidden_size": 128, "projector_hidden_size": 32,
}  # fmt: skip
_MUSE_TEXT: dict[str, Any] = HEAD | {
    "sliding_window": 10, "layer_types": MIXED, "layer_rope_theta": [10000.0, 10000.0, 0] * 2,
    "output_multiplier": 0.5,
}  # fmt: skip

WINDOWS: dict[str, Tiny] = {
    "llava_next, sliding mistral": Tiny(
        "LlavaNextConfig", {"vision_config": CLIP, "image_seq_length": 16} | TILED,
        text("mistral", **HEAD, sliding_window=24), media.tiles(),
    ),
    "gemma3": Tiny(
        "Gemma3Config", _GEMMA3,
        text(**HEAD, query_pre_attn_scalar=16, sliding_window=10, layer_types=MIXED),
        media.typed(media.squares(16, wrapped=True)), embedding=0.125,
    ),
    "gemma4": _gemma4(0, MIXED, use_bidirectional_attention="vision"),
    "gemma4, shared keys": _gemma4(2, ["sliding_attention", "full_attention"] * 3),
    "paligemma": Tiny(
        "PaliGemmaConfig", _PALIGEMMA, text("gemma", **HEAD),
        media.typed(media.squares(16), kind=0), **_PREFIX,
    ),
    "paligemma2": Tiny(
        "PaliGemmaConfig", _PALIGEMMA,
        text("gemma2", **HEAD, query_pre_attn_scalar=16, sliding_window=10,
              attn_logit_softcapping=5.0, final_logit_softcapping=30.0),
        media.typed(media.squares(16), kind=0), backend="eager", **_PREFIX,
    ),
    "idefics2": Tiny(
        "Idefics2Config",
        {"vision_config": TOWER, "perceiver_config": {
            "num_key_value_heads": 1, "resampler_n_latents": 8, "resampler_depth": 1,
            "resampler_n_heads": 2, "resampler_head_dim": 16, "hidden_size": 64,
        }} | ONE,
        text("mistral", **HEAD, sliding_window=10), media.resampled,
    ),
    "llama4": Tiny(
        "Llama4Config",
        {"vision_config": TOWER | {
            "intermediate_size": 128, "vision_output_dim": 64, "projector_input_dim": 64,
            "projector_output_dim": 64,
        }} | OLD,
        text(**HEAD, intermediate_size_mlp=96, num_local_experts=4, num_experts_per_tok=1,
              attention_chunk_size=16, no_rope_layers=[1, 1, 0] * 2, floor_scale=8,
              interleave_moe_layer_step=2),
        media.squares(4, wrapped=True),
    ),
    "aya_vision": Tiny(
        "AyaVisionConfig", {"vision_config": SIGLIP} | OLD,
        text("cohere2", **HEAD, sliding_window=10, layer_types=MIXED, logit_scale=1.0),
        media.squares(4, wrapped=True),
    ),
    "cohere2_vision": Tiny(
        "Cohere2VisionConfig", {"vision_config": SIGLIP, "alignment_intermediate_size": 64} | ONE,
        text("cohere2", **HEAD, sliding_window=10, layer_types=MIXED, logit_scale=1.0),
        media.squares(4, wrapped=True),
    ),
    "gemma4_unified": Tiny(
        "Gemma4UnifiedConfig", {"vision_config": None, "audio_config": None} | GEMMA_MARKS,
        text(**HEAD, sliding_window=10, layer_types=MIXED),
        media.typed(encoded.listed, key="mm_token_type_ids"), encoded=True,
        dtype=torch.float64, embedding=0.125, sharper=-0.5,
    ),
    "shieldgemma2": Tiny(
        "ShieldGemma2Config", _GEMMA3,
        text("gemma3_text", **HEAD, query_pre_attn_scalar=16, sliding_window=10, layer_types=MIXED),
        media.typed(media.squares(16, wrapped=True)), embedding=0.125,
    ),
    "molmo2": Tiny(
        "Molmo2Config",
        {"vision_config": TOWER | {
            "image_size": [32, 32], "num_position_embeddings": 16, "num_key_value_heads": 2,
            "head_dim": 16,
        }, "adapter_config": {
            "vision_feature_layer": [-1, -2], "hidden_size": 32, "num_attention_heads": 2,
            "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 64,
            "text_hidden_size": 64,
        }, "image_patch_id": IMAGE, "image_start_token_id": START, "image_end_token_id": END,
         "low_res_image_start_token_id": 95, "frame_start_token_id": 94,
         "frame_end_token_id": 93},
        text(**HEAD, additional_vocab_size=4, rope_parameters=ROPE),
        media.typed(encoded.listed, key="mm_token_type_ids"), encoded=True,
    ),
    "exaone4_5": Tiny(
        "Exaone4_5_Config",
        {"vision_config": QWEN | SPARSE | {"num_key_value_heads": 2}} | BOTH,
        text("exaone4", **HEAD, sliding_window=10, sliding_window_pattern=3), media.grids(),
        video=True,
    ),
    "step3p7": Tiny(
        "Step3p7Config",
        {"vision_config": TOWER | {"mlp_ratio": 2.0, "max_position_embeddings": 64}
         | LARGE} | ONE,
        text(**HEAD, sliding_window=10, layer_types=MIXED, num_sliding_attention_heads=8,
             mlp_layer_types=["dense"] * 2 + ["sparse"] * 4, n_routed_experts=4,
             num_experts_per_tok=2, moe_intermediate_size=32, share_expert_dim=32,
             query_pre_attn_scalar=16, rope_parameters={
                 "full_attention": ROPE | {"partial_rotary_factor": 0.5}, "sliding_attention": ROPE,
             }),
        media.squares(4, size=64),
    ),
    "muse_glimmer": Tiny(
        "MuseGlimmerConfig", _MUSE, text(**_MUSE_TEXT), media.grids(depth=2), video=True,
    ),
    "muse_spark": Tiny(
        "MuseSparkConfig",
        _MUSE | {"audio_token_id": 93, "audio_config": {
            "patch_sizes": [4, 4], "hidden_sizes": [16, 32], "depths": [1, 1],
            "num_hidden_layers": 2, "out_hidden_size": 64,
        }},
        text(**_MUSE_TEXT, moe_intermediate_size=32, moe_hidden_size=32, num_local_experts=4,
             num_experts_per_tok=2),
        media.grids(depth=2), video=True, dtype=torch.float64,
    ),
}  # fmt: skip
