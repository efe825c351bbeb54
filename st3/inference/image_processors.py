"""The image processor that a configuration's pictures go through, with no checkpoint at hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoImageProcessor
from transformers.models.auto import image_processing_auto, processing_auto

from st3.inference.checkpoints import Source, find
from st3.inference.presets import PICTURES

_FILE = "preprocessor_config.json"
_IMAGES: Any = image_processing_auto
_WHOLE: Any = processing_auto
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
        ValueError: the family has none, or none that runs here; or the checkpoint's makes no sense.
    """
    name = str(getattr(config, "name_or_path", "") or "")
    place = place_of(config)
    if place is not None:
        try:
            return AutoImageProcessor.from_pretrained(
                place.place, revision=place.revision, trust_remote_code=False,
                local_files_only=True,
            )  # fmt: skip
        except ImportError:
            pass  # it wants torchvision
        except (OSError, ValueError, AttributeError, TypeError) as error:
            file = Path(place.place) / _FILE
            if file.is_file():
                raise ValueError(f"{file} makes no image processor: {error}") from error
    return _of_family(config, PICTURES.get(name, {}))


def place_of(config: Any) -> Source | None:
    """Where a configuration says that it came from, if that is anywhere."""
    name = str(getattr(config, "name_or_path", "") or "")
    try:
        return find(name) if name and name not in PICTURES else None
    except ValueError:
        return None


def _of_family(config: Any, settings: Mapping[str, Any]) -> Any:
    """With the family's own settings but for those given, and those that the tower fixes."""
    family = config.model_type
    names = _names(family)
    if not hasattr(names, "keys"):
        raise ValueError(f"transformers has no image processor for the family {family!r}")
    errors = []
    for backend in _BACKENDS:
        try:
            made = getattr(transformers, names[backend])
            return made(**(fitted(made, config) | dict(settings)))
        except KeyError:
            continue
        except (ImportError, AttributeError, ValueError) as error:
            errors.append(" ".join(str(error).split()).partition(". ")[0][:200])
    raise ValueError(
        f"the image processor of the family {family!r} does not run here; it may want "
        f"torchvision: {errors[0] if errors else 'there is none'}"
    )


def _names(family: str) -> Any:
    """Classes by backend; where it has none, those of a family with the same processor."""
    images, whole = _IMAGES.IMAGE_PROCESSOR_MAPPING_NAMES, _WHOLE.PROCESSOR_MAPPING_NAMES
    alike = [name for name in whole if whole.get(family) and whole[name] == whole[family]]
    found = (images.get(name) for name in (family, *alike))
    return next((names for names in found if hasattr(names, "keys")), None)


def fitted(made: Any, config: Any) -> dict[str, Any]:
    """What the configuration says of an image or video processor's settings."""
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
        if hasattr(made, "max_image_size"):  # of a tile
            found["max_image_size"] = {"longest_edge": side}
        for setting in ("size", "crop_size"):
            default = getattr(made, setting, None) or {}
            if {*default} in ({"shortest_edge"}, {"height", "width"}):
                found[setting] = dict.fromkeys(default, side)
    return found
