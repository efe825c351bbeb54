"""LLaVA-OneVision ends a video with a token that is no part of it."""

from __future__ import annotations

from st3.families.base import Adapter

ADAPTER = Adapter(model_type="llava_onevision", video_ends=1)
