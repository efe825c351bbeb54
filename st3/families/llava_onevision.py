"""LLaVA-OneVision pools a frame to half its sides, and ends a video with a token of no frame."""

from __future__ import annotations

import inspect
import math
from typing import Any

from st3.families.base import Adapter


def _ends(merger: Any) -> int:
    """One, where its forward puts it behind the features; newer versions have it among them."""
    return int("image_newline" not in inspect.getsource(merger.get_video_features))


def _frame(config: Any) -> int:
    side = config.vision_config.image_size // config.vision_config.patch_size
    return int(math.ceil(side / 2) ** 2)


ADAPTER = Adapter(model_type="llava_onevision", video_ends=_ends, frame_tokens=_frame)
