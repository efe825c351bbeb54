"""Families whose layers see a window or a chunk, a few tokens wide, or a picture at once."""

from __future__ import annotations

from typing import Any

import torch
from families import media
from families.media import END, START
from families.tiny import Tiny
from families.zoo.pieces import (
    BOTH,
    CLIP,
    HEAD,
    MIXED,
    OLD,
    ONE,
    SIGLIP,
    SIZELESS,
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
    fields = BOTH | {
        "vision_config": vision, "audio_config": None, "boi_token_id": START, "eoi_token_id": END,
        "boa_token_id": 95, "eoa_token_index": 94, "audio_token_id": 93,
    }  # fmt: skip
    return Tiny(
        "Gemma4Config", fields, decoder, media.typed(media.encoded, key="mm_token_type_ids"),
        dtype=torch.float64, embedding=0.125, sharper=-0.5,
    )  # fmt: skip


_PREFIX = {"one": ("IItttt",), "padded": ("IIttttt", "Itt"), "embedding": 0.125}
_PALIGEMMA = OLD | {
    "vision_config": SIGLIP | {"projection_dim": 64}, "projection_dim": 64, "hidden_size": 64,
    "vocab_size": 100,
}  # fmt: skip

WINDOWS: dict[str, Tiny] = {
    "llava_next, sliding mistral": Tiny(
        "LlavaNextConfig", {"vision_config": CLIP, "image_seq_length": 16} | TILED,
        text("mistral", **HEAD, sliding_window=24), media.tiles(),
    ),
    "gemma3": Tiny(
        "Gemma3Config",
        {"vision_config": SIGLIP | {"patch_size": 4}, "mm_tokens_per_image": 16,
         "boi_token_index": START, "eoi_token_index": END} | OLD,
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
        text("mistral", **HEAD, sliding_window=10), media.encoded,
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
}  # fmt: skip
