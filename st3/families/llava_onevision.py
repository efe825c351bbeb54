"""LLaVA-OneVision ends a video with a token that is no part of it."""

from __future__ import annotations

import inspect
from typing import Any

from st3.families.base import Adapter


def _ends(merger: Any) -> int:
    """One, where its forward puts it behind the features; newer versions have it among them."""
    return int("image_newline" not in inspect.getsource(merger.get_video_features))


ADAPTER = Adapter(model_type="llava_onevision", video_ends=_ends)
