"""Processors of pictures where torchvision is missing: as transformers has them, without videos.

transformers resizes pictures with Pillow as well as with torchvision, but a processor that also
takes videos asks for a video processor, and that for torchvision. Here it gets none, so that
pictures work with the base install.
"""

from __future__ import annotations

from typing import Any

import transformers
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoTokenizer, ProcessorMixin
from transformers.models.auto import processing_auto

_LOADERS: dict[str, Any] = {
    "tokenizer": AutoTokenizer,
    "image_processor": AutoImageProcessor,
    "feature_extractor": AutoFeatureExtractor,
}
_KNOWN: Any = processing_auto
_VIDEO = "video_processor"


def load_still_processor(place: str, revision: str, family: str) -> Any:
    """A checkpoint's processor for text and pictures.

    Args:
        place, revision: of the checkpoint.
        family: of its model, where its own files do not name the processor's class.

    Raises:
        ImportError: it needs torchvision for pictures too.
        ValueError: it is none of transformers' own that could do without videos.
        OSError: not found, or not reachable.
    """
    settings, _ = ProcessorMixin.get_processor_dict(place, revision=revision)
    names = _KNOWN.PROCESSOR_MAPPING_NAMES
    name = settings.get("processor_class") or names.get(family)
    kind: Any = getattr(transformers, str(name), None)
    if not hasattr(kind, "get_attributes") or _VIDEO not in kind.get_attributes():
        raise ValueError(f"no processor of transformers' that takes videos: {name}")
    options = {"revision": revision, "trust_remote_code": False}
    parts = [
        None if part == _VIDEO else _LOADERS[part].from_pretrained(place, **options)
        for part in kind.get_attributes()
    ]
    for part in kind.get_attributes():
        settings.pop(part, None)
    return _still(kind).from_args_and_dict(parts, settings)


def _still(kind: Any) -> Any:
    """The same class without videos."""
    return type(kind.__name__, (_WithoutVideos, kind), {})


def _blank(kind: Any) -> Any:
    """One of these, for a copy or another process to fill."""
    still = _still(kind)
    return still.__new__(still)


class _WithoutVideos:
    """Takes None where a video processor belongs; keeps its class's look and file."""

    apply_chat_template = ProcessorMixin.apply_chat_template  # some ask the video processor things

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        if argument_name == _VIDEO and argument is None:
            return None
        return super().check_argument_for_proper_class(argument_name, argument)  # type: ignore[misc]

    def __reduce__(self) -> tuple[Any, ...]:
        return _blank, (type(self).__mro__[2],), vars(self)

    @classmethod
    def get_attributes(cls) -> list[str]:
        return cls.__mro__[2].get_attributes()  # type: ignore[attr-defined,no-any-return]
