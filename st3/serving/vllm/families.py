"""Which of vLLM's models the plug-in trims, and what differs between them. No vLLM here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Family:
    """One architecture of vLLM.

    Attributes:
        module: of `vllm.model_executor.models`; `name`: its class there.
        tile: of a configuration, how many rows a tile has, where tiles count as pictures.
        lines: whether text stands between the lines of a picture, so that each is a pool.
        on_a_grid: whether positions have axes for lines and columns (M-RoPE).
    """

    module: str
    name: str
    tile: Callable[[Any], int] = lambda config: 0
    lines: bool = False
    on_a_grid: bool = False


def _internvl_tile(config: Any) -> int:
    """Rows of a tile, by its side in patches and how many neighbours are merged."""
    vision = config.vision_config
    sides = (vision.image_size, vision.patch_size)
    size, patch = (side if isinstance(side, int) else side[0] for side in sides)
    return int((size // patch) ** 2 * config.downsample_ratio**2)


FAMILIES: dict[str, Family] = {
    "LlavaForConditionalGeneration": Family("llava", "LlavaForConditionalGeneration"),
    "LlavaNextForConditionalGeneration": Family("llava_next", "LlavaNextForConditionalGeneration"),
    "LlavaOnevisionForConditionalGeneration": Family(
        "llava_onevision", "LlavaOnevisionForConditionalGeneration"
    ),
    "Qwen2VLForConditionalGeneration": Family(
        "qwen2_vl", "Qwen2VLForConditionalGeneration", on_a_grid=True
    ),
    "Qwen2_5_VLForConditionalGeneration": Family(
        "qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", on_a_grid=True
    ),
    "Qwen3VLForConditionalGeneration": Family(
        "qwen3_vl", "Qwen3VLForConditionalGeneration", on_a_grid=True
    ),
    "InternVLChatModel": Family("internvl", "InternVLChatModel", _internvl_tile),
    "InternVLForConditionalGeneration": Family(
        "interns1", "InternS1ForConditionalGeneration", _internvl_tile
    ),
    "Gemma3ForConditionalGeneration": Family("gemma3_mm", "Gemma3ForConditionalGeneration"),
    "Mistral3ForConditionalGeneration": Family(
        "mistral3", "Mistral3ForConditionalGeneration", lines=True
    ),
}
"""By the name in a checkpoint's `architectures`."""


def has_class_token(config: Any) -> bool:
    """Whether the tower is one whose class token the plug-in can watch: CLIP's."""
    vision = getattr(config, "vision_config", None)
    return getattr(vision, "model_type", "") == "clip_vision_model"
