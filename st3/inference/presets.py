"""Built-in shapes: configurations of models that people deploy, with no network and no weights."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig

from st3.inference.configs import find_config

_CLIP = {
    "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096,
    "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 336, "patch_size": 14,
    "projection_dim": 768,
}  # fmt: skip
_SIGLIP = {
    "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304,
    "num_hidden_layers": 27, "num_attention_heads": 16, "image_size": 384, "patch_size": 14,
}  # fmt: skip


def _llama(hidden: int, intermediate: int, layers: int, head: int = 128) -> dict[str, Any]:
    heads = hidden // head
    return {
        "model_type": "llama", "vocab_size": 32064, "hidden_size": hidden,
        "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": heads,
        "max_position_embeddings": 4096,
    }  # fmt: skip


def _qwen(model_type: str, vocabulary: int, context: int, **more: Any) -> dict[str, Any]:
    """Qwen2's 7B, which several families took for their decoder."""
    return {
        "model_type": model_type, "vocab_size": vocabulary, "hidden_size": 3584,
        "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "max_position_embeddings": context, **more,
    }  # fmt: skip


_SHAPES: dict[str, dict[str, Any]] = {
    # LLaVA-7B's proportions and depth, for a laptop to time.
    "small": {
        "model_type": "llava", "image_token_index": 32000,
        "text_config": _llama(640, 1728, 32, 64),
        "vision_config": _CLIP | {
            "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6,
            "num_attention_heads": 4,
        },
    },
    "7b": {
        "model_type": "llava", "image_token_index": 32000,
        "text_config": _llama(4096, 11008, 32), "vision_config": _CLIP,
    },
    "13b": {
        "model_type": "llava", "image_token_index": 32000,
        "text_config": _llama(5120, 13824, 40), "vision_config": _CLIP,
    },
    "llava-next-7b": {
        "model_type": "llava_next", "image_token_index": 32000,
        "text_config": _llama(4096, 11008, 32), "vision_config": _CLIP,
        "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    },
    "llava-onevision-7b": {
        "model_type": "llava_onevision", "image_token_index": 151646, "video_token_index": 151647,
        "text_config": _qwen("qwen2", 152000, 32768),
        "vision_config": _SIGLIP | {"num_hidden_layers": 26, "vision_use_head": False},
        "vision_aspect_ratio": "anyres_max_9",
        "image_grid_pinpoints": [
            [384 * high, 384 * wide] for high in range(1, 7) for wide in range(1, 7)
        ],
    },
    "qwen2.5-vl-7b": {
        "model_type": "qwen2_5_vl", "image_token_id": 151655, "video_token_id": 151656,
        "vision_start_token_id": 151652, "vision_end_token_id": 151653,
        "text_config": _qwen(
            "qwen2_5_vl_text", 152064, 128000,
            rope_parameters={
                "rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24],
            },
        ),
        "vision_config": {
            "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
            "out_hidden_size": 3584, "patch_size": 14, "spatial_merge_size": 2,
            "temporal_patch_size": 2, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
        },
    },
    "qwen3-vl-8b": {
        "model_type": "qwen3_vl", "image_token_id": 151655, "video_token_id": 151656,
        "vision_start_token_id": 151652, "vision_end_token_id": 151653,
        "text_config": {
            "model_type": "qwen3_vl_text", "vocab_size": 151936, "hidden_size": 4096,
            "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
            "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 262144,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20],
                "mrope_interleaved": True,
            },
        },
        "vision_config": {
            "depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16,
            "out_hidden_size": 4096, "patch_size": 16, "spatial_merge_size": 2,
            "temporal_patch_size": 2, "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [8, 16, 24],
        },
    },
    "internvl3-8b": {
        "model_type": "internvl", "image_token_id": 151667, "tie_word_embeddings": False,
        "text_config": _qwen("qwen2", 151674, 32768),
        "vision_config": {
            "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
            "num_attention_heads": 16, "image_size": [448, 448], "patch_size": [14, 14],
        },
    },
    "gemma3-12b": {
        "model_type": "gemma3", "image_token_index": 262144, "mm_tokens_per_image": 256,
        "text_config": {
            "model_type": "gemma3_text", "vocab_size": 262208, "hidden_size": 3840,
            "intermediate_size": 15360, "num_hidden_layers": 48, "num_attention_heads": 16,
            "num_key_value_heads": 8, "head_dim": 256, "sliding_window": 1024,
            "max_position_embeddings": 131072,
        },
        "vision_config": _SIGLIP | {"image_size": 896, "vision_use_head": False},
    },
}  # fmt: skip
PICTURES: dict[str, dict[str, Any]] = {
    **{name: {} for name in _SHAPES},
    "qwen2.5-vl-7b": {"size": {"shortest_edge": 56 * 56, "longest_edge": 16384 * 28 * 28}},
    "qwen3-vl-8b": {"size": {"shortest_edge": 64 * 32 * 32, "longest_edge": 16384 * 32 * 32}},
    "internvl3-8b": {"crop_to_patches": True, "min_patches": 1, "max_patches": 12},
}
"""Settings of their image processors that neither family nor configuration tells."""
PRESETS = ("demo", *_SHAPES)


def known_config(name: str) -> Any:
    """The configuration of one of `PRESETS`.

    Raises:
        ValueError: any other name.
    """
    if name == "demo":
        return find_config(name)
    if name not in _SHAPES:
        raise ValueError(f"no built-in configuration {name!r}; there are: {', '.join(PRESETS)}")
    config: Any = AutoConfig.for_model(**_SHAPES[name])
    config.name_or_path = name
    return config
