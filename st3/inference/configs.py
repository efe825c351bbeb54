"""Is it for my model? A configuration is read and judged, before anything large is touched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoConfig
from transformers.utils.hub import cached_file

from st3.families.base import FAMILIES
from st3.families.examples import EXAMPLES
from st3.families.names import name_family
from st3.families.parts import judge
from st3.families.proven import PROVEN
from st3.files import plainly
from st3.inference.checkpoints import HUB_IDS, Source, fetching, find, offline

_ORIGINAL = ("mm_vision_tower", "mm_projector_type")
"""Keys of LLaVA's original format: a text model's configuration with the picture's parts in it."""
_PATIENCE = 10  # seconds for the Hub's first word, as its client has


def find_config(name: str, revision: str | None = None) -> Any:
    """The configuration of what a user calls a model, of a family that fits.

    Raises:
        ValueError: see `find` and `load_config`.
        OSError: not found, or not reachable; the line names the families that can be trimmed.
    """
    return load_config(find(name, revision))


def load_config(source: Source) -> Any:
    """A checkpoint's configuration, of a family that fits; only `config.json` is read.

    Raises:
        ValueError: no configuration there, or of no family that fits; what can be trimmed is said.
        OSError: not found, or not reachable; they are named as well.
    """
    if source.is_folder:
        path = Path(source.place) / "config.json"
        if not path.is_file():
            raise ValueError(f"{source.place} is no checkpoint: it has no config.json")
    else:
        with fetching(source, f"; {_by_name(source.place)}"):
            path = _fetch(source)
    return _make(path, source)


def _by_name(place: str) -> str:
    """What can be said of a checkpoint whose configuration is not at hand; a name promises little.

    Checkpoints in the format of their authors are called as those for transformers are.
    """
    family = name_family(place, {*CONFIG_MAPPING, *PROVEN})
    if family is None:
        return FAMILIES
    if family not in PROVEN:
        return (
            f"by its name it may be of the family {family}, on which st3 is not proven "
            "(docs/models.md)"
        )
    example = EXAMPLES.get(family)
    if example == place:
        return f"it is of the family {family}, which st3 trims"
    such = f", as {example} is" if example else ""
    return (
        f"by its name it may be of the family {family}, which st3 trims where it is in "
        f"transformers' own format{such}"
    )


def _fetch(source: Source) -> Path:
    """`config.json` of a checkpoint on the Hub, in the local cache.

    The Hub's client asks a Hub that it cannot reach six times, for half a minute. It is asked once
    before, unless the file is here already.
    """
    name, at = "config.json", source.revision
    here = try_to_load_from_cache(source.place, name, revision=at)
    if not (offline() or isinstance(here, str)):
        get_hf_file_metadata(hf_hub_url(source.place, name, revision=at), timeout=_PATIENCE)
    return Path(str(cached_file(source.place, name, revision=at)))


def read_config(path: Path) -> Any:
    """The configuration in a file, or in a folder's `config.json`.

    Raises:
        ValueError: see `load_config`.
    """
    if path.is_dir():
        return load_config(Source(str(path)))
    return _make(path, Source(str(path)))


def _make(path: Path, source: Source) -> Any:
    _judge(_read(path), source.place)
    try:
        with fetching(source):
            config = AutoConfig.from_pretrained(
                source.place, revision=source.revision, trust_remote_code=False
            )
    except (ValueError, TypeError, AttributeError, KeyError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())  # some of these have many lines
        raise ValueError(f"{path} makes no configuration: {reason}") from error
    judge(config)
    return config


def _read(path: Path) -> dict[str, Any]:
    """Its keys.

    Raises:
        ValueError: no such file, no JSON, or no model's configuration.
    """
    with plainly("read", path):
        text = path.read_bytes()
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    keys = found if isinstance(found, dict) else {}
    if not keys.get("model_type"):
        raise ValueError(f"{path} is no model's configuration: it has no model_type")
    return keys


def _judge(found: dict[str, Any], name: str) -> None:
    """See that a configuration's keys are of a family that transformers has, in its format.

    Raises:
        ValueError: they are not; says what to take instead.
    """
    family = str(found["model_type"])
    unknown = family not in CONFIG_MAPPING
    if any(key in found for key in _ORIGINAL) or (unknown and family.startswith("llava")):
        raise ValueError(
            f"{name} is in LLaVA's original format ({family}): take a checkpoint that was "
            f"converted for transformers, on the Hub as -hf, e.g. {HUB_IDS['7b']}"
        )
    if unknown and "auto_map" in found:
        raise ValueError(
            f"{name} brings code of its own, which st3 does not run: take a checkpoint of a family "
            f"that transformers itself has; {FAMILIES}"
        )
    if unknown:
        raise ValueError(
            f"{name} is of the family {family!r}, which the installed transformers does not know: "
            f"upgrade it, or take another checkpoint; {FAMILIES}"
        )
