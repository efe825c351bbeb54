"""Phi-4 multimodal: the decoder itself merges pictures; the vision tower names the placeholder."""

from __future__ import annotations

from st3.families.base import Adapter

ADAPTER = Adapter(
    "phi4_multimodal",
    merger=lambda model: getattr(model, "model", model),
    visual_ids=lambda config: (config.vision_config.image_token_id,),
)
