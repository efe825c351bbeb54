"""Tiny checkpoints of every family that vLLM's plug-in trims, with the processors of the Hub's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from families import checkpoints
from families.checkpoints import CHECKPOINTS, Checkpoint, save_checkpoint
from transformers import Mistral3Config, Qwen2VLConfig

from st3.demo.packaging import use_hub_names
from st3.inference.presets import known_config

_WIDE = 32
"""Of a head: vLLM's kernels have none that is narrower."""
_TOWERS = {"mistral3": {"head_dim": _WIDE}}


def _qwen2_vl() -> Any:
    config = Qwen2VLConfig()
    config.vision_config.hidden_size = config.text_config.hidden_size  # the tower's way out
    config.text_config.rope_parameters = {
        "rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]
    }  # fmt: skip
    return config


SERVED: dict[str, Checkpoint] = {
    "llava": Checkpoint(
        "LlavaProcessor", lambda: known_config("7b"), {"image_token": "<image>"}, "<image>",
        {"patch_size": 14, "vision_feature_select_strategy": "default",
         "num_additional_image_tokens": 1},
    ),
    "qwen2_vl": Checkpoint(
        "Qwen2VLProcessor", _qwen2_vl, CHECKPOINTS["qwen2_5_vl"].marks,
        CHECKPOINTS["qwen2_5_vl"].place, film=CHECKPOINTS["qwen2_5_vl"].film,
        films={"video_processor_type": "Qwen2VLVideoProcessor"},
    ),
    "mistral3": Checkpoint(
        "PixtralProcessor", Mistral3Config,
        {"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]",
         "image_end_token": "[IMG_END]"},
        "[IMG]", {"patch_size": 14, "spatial_merge_size": 2},
        {"size": {"longest_edge": 280}, "patch_size": 28},
    ),
} | {
    name: CHECKPOINTS[name]
    for name in ("llava_next", "llava_onevision", "qwen2_5_vl", "qwen3_vl", "internvl")
} | {
    "gemma3": replace(
        CHECKPOINTS["gemma3"],
        marks=CHECKPOINTS["gemma3"].marks | {f"newline_{n}": "\n" * n for n in (1, 2, 3, 4)},
    ),
}  # fmt: skip


def save_served(name: str, folder: Path) -> Path:
    """Write one."""
    with (
        patch.dict(checkpoints.CHECKPOINTS, SERVED),
        patch("st3.inference.shrink.HEAD", _WIDE),
        patch.dict("st3.inference.shrink._TOWER", _TOWERS.get(name, {})),
    ):
        save_checkpoint(name, folder)
    if name in ("llava", "llava_next", "llava_onevision", "gemma3"):
        use_hub_names(folder / "model.safetensors")
    return folder
