"""Built-in shapes: the configurations of `demo`, `7b`, `13b` and `small`, with no network."""

from __future__ import annotations

from typing import Any

from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from st3.inference.configs import find_config

PRESETS = ("demo", "small", "7b", "13b")
"""`small` is a shape without weights, that a laptop can time."""
# Decoder: hidden, intermediate, layers, head size. LLaVA-1.5's are LLaMA's; `small` has 7b's
# proportions and depth.
_SIZES = {"small": (640, 1728, 32, 64), "7b": (4096, 11008, 32, 128), "13b": (5120, 13824, 40, 128)}


def known_config(name: str) -> Any:
    """The configuration of one of `PRESETS`.

    Raises:
        ValueError: any other name.
    """
    if name == "demo":
        return find_config(name)
    if name not in _SIZES:
        raise ValueError(f"no built-in configuration {name!r}; there are: {', '.join(PRESETS)}")
    hidden, intermediate, layers, head_size = _SIZES[name]
    tower = (256, 1024, 6, 4) if name == "small" else (1024, 4096, 24, 16)
    vision = CLIPVisionConfig(
        hidden_size=tower[0],
        intermediate_size=tower[1],
        num_hidden_layers=tower[2],
        num_attention_heads=tower[3],
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )
    text = LlamaConfig(
        vocab_size=32064,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=hidden // head_size,
        num_key_value_heads=hidden // head_size,
        max_position_embeddings=4096,
    )
    return LlavaConfig(vision_config=vision, text_config=text, image_token_index=32000)
