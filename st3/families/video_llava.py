"""Video-LLaVA keeps a class token with the patches of each frame; frames lie end to end."""

from __future__ import annotations

from typing import Any

from st3.families.base import Adapter


def _frame(config: Any) -> int:
    return int((config.vision_config.image_size // config.vision_config.patch_size) ** 2 + 1)


ADAPTER = Adapter(model_type="video_llava", frame_tokens=_frame)
