"""LLaVA-NeXT-Video pools the patches of a frame; frames lie end to end."""

from __future__ import annotations

from typing import Any

from st3.families.base import Adapter


def _frame(config: Any) -> int:
    side = config.vision_config.image_size // config.vision_config.patch_size
    return int((side // config.spatial_pool_stride) ** 2)


ADAPTER = Adapter(model_type="llava_next_video", frame_tokens=_frame)
