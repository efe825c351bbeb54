"""Phi-4 multimodal: the placeholder is named in the vision tower's configuration."""

from __future__ import annotations

from st3.families.base import Adapter

ADAPTER = Adapter(
    "phi4_multimodal", visual_ids=lambda config: (config.vision_config.image_token_id,)
)
