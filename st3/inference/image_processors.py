"""The image processor that a configuration's pictures go through, with no checkpoint at hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import transformers
from transformers import AutoImageProcessor
from transformers.models.auto import image_processing_auto as known

from st3.inference.checkpoints import find
from st3.inference.presets import PICTURES

_BACKENDS = ("pil", "torchvision")
_OF_TOWER = {
    "patch_size": "patch_size", "temporal_patch_size": "temporal_patch_size",
    "merge_size": "spatial_merge_size",
}  # fmt: skip
"""Settings of an image processor, and how the vision tower's configuration calls them."""


def image_processor_for(config: Any) -> Any:
    """That of the checkpoint or built-in shape that a configuration came from, else its family's.

    Where nothing else says so, sizes are those that the vision tower was made for.

    Raises:
        ValueError: the family has none, or none that runs here.
    """
    name = str(getattr(config, "name_or_path", "") or "")
    if name and name not in PICTURES:
        try:
            source = find(name)
            return AutoImageProcessor.from_pretrained(
                source.place, revision=source.revision, trust_remote_code=False,
                local_files_only=True,
            )  # fmt: skip
        except (OSError, ValueError, ImportError):
            pass  # a bare configuration, or one whose files are elsewhere
    return _of_family(config, PICTURES.get(name, {}))


def _of_family(config: Any, settings: Mapping[str, Any]) -> Any:
    """With the family's own settings but for those given, and those that the tower fixes."""
    family = config.model_type
    names: Any = known.IMAGE_PROCESSOR_MAPPING_NAMES.get(family)  # type: ignore[attr-defined]
    if not hasattr(names, "keys"):
        raise ValueError(f"transformers has no image processor for the family {family!r}")
    errors = []
    for backend in _BACKENDS:
        try:
            made = getattr(transformers, names[backend])
            return made(**(_fitted(made, config) | dict(settings)))
        except KeyError:
            continue
        except (ImportError, AttributeError, ValueError) as error:
            errors.append(" ".join(str(error).split())[:200])
    raise ValueError(
        f"the image processor of the family {family!r} does not run here; it may want "
        f"torchvision: {errors[0] if errors else 'there is none'}"
    )


def _fitted(made: Any, config: Any) -> dict[str, Any]:
    """What the configuration says of an image processor's settings."""
    vision: Any = getattr(config, "vision_config", None)
    found: dict[str, Any] = {}
    for setting, key in _OF_TOWER.items():
        value = getattr(vision, key, None)
        if isinstance(value, int) and hasattr(made, setting):
            found[setting] = value
    pinpoints = getattr(config, "image_grid_pinpoints", None)
    if pinpoints and hasattr(made, "image_grid_pinpoints"):
        found["image_grid_pinpoints"] = [list(point) for point in pinpoints]
    side = getattr(vision, "image_size", None)
    side = side[0] if isinstance(side, list | tuple) else side
    if isinstance(side, int):
        for setting in ("size", "crop_size"):
            default = getattr(made, setting, None) or {}
            if {*default} in ({"shortest_edge"}, {"height", "width"}):
                found[setting] = dict.fromkeys(default, side)
    return found
