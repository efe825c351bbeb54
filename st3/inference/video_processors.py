"""The video processor that a configuration's videos go through, with no checkpoint at hand."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import transformers
from transformers import AutoVideoProcessor
from transformers.models.auto import processing_auto
from transformers.utils.import_utils import is_torchvision_available

from st3.inference.image_processors import fitted, place_of
from st3.inference.processors import TORCHVISION

_WHOLE: Any = processing_auto
_FAILURES = (OSError, ValueError, TypeError, AttributeError, ImportError, KeyError)


def has_videos(config: Any) -> bool:
    """Whether a configuration's family takes videos, and not their frames as pictures."""
    name = str(_WHOLE.PROCESSOR_MAPPING_NAMES.get(config.model_type))
    whole: Any = getattr(transformers, name, None)
    return hasattr(whole, "get_attributes") and "video_processor" in whole.get_attributes()


def video_processor_for(config: Any) -> Any:
    """That of the checkpoint that a configuration came from, else its family's.

    Raises:
        ValueError: the family has none, or none that runs here.
    """
    family = config.model_type
    if not has_videos(config):
        raise ValueError(f"transformers has no video processor for the family {family!r}")
    if not is_torchvision_available():
        raise ValueError(f"this family's videos need torchvision: {TORCHVISION}")
    place = place_of(config)
    if place is not None:
        try:
            return AutoVideoProcessor.from_pretrained(
                place.place, revision=place.revision or "main", trust_remote_code=False,
                local_files_only=True,
            )  # fmt: skip
        except _FAILURES:
            pass  # it brings none, or is not here
    try:
        films = import_module("transformers.models.auto.video_processing_auto")
        name = films.VIDEO_PROCESSOR_MAPPING_NAMES[family]
        made = getattr(transformers, name["torchvision"] if isinstance(name, dict) else name)
        return made(**fitted(made, config))
    except _FAILURES as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"the video processor of the family {family!r} does not run here: {reason}"
        ) from error
