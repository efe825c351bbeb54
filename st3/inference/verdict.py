"""Is it for my model, in a word: of a family, however it is written, a short name, a folder or a
Hub id; no weights."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from st3.families.examples import EXAMPLES
from st3.families.names import name_family
from st3.families.parts import judge, unproven
from st3.families.proven import PROVEN
from st3.inference.checkpoints import HUB_IDS
from st3.inference.configs import find_config
from st3.inference.presets import PRESETS, known_config

_TOKENS = ("image_token_id", "video_token_id")
_ANY = 5


@dataclass(frozen=True)
class Verdict:
    """On a model that can be trimmed.

    Attributes:
        family, text_models: as transformers calls them; a checkpoint has one text model.
        proven: an oracle has proven this family with this text model, on tiny random models; if
            not, st3 finds the parts that it needs, and `st3.trim` warns.
        example: a checkpoint of the family on the Hub, if we know of one.
        shape: what `st3 profile --model` takes for it: the name that was given, or of a family the
            short name of its example, if that has one.
        layers: of that shape's decoder.
    """

    family: str
    text_models: tuple[str, ...]
    proven: bool
    example: str | None
    shape: str | None
    layers: int | None


def verdict(name: str) -> Verdict:
    """Look at what a user calls a model, or at a family's default configuration.

    Raises:
        ValueError: it cannot be trimmed, and why; or it is no model, see `find_config`.
        OSError: not found, or not reachable.
    """
    if not Path(name).is_dir() and name not in PRESETS and name.partition("@")[0] not in HUB_IDS:
        family = _named(name)
        if family is not None:
            return _on_family(family)
    config = known_config(name) if name in PRESETS else find_config(name)
    text = config.get_text_config()
    family, proven = config.model_type, unproven(config) is None
    return Verdict(
        family, (text.model_type,), proven, EXAMPLES.get(family), name, text.num_hidden_layers
    )


def _named(name: str) -> str | None:
    """The family that is meant, None of what may be a checkpoint.

    Raises:
        ValueError: neither.
    """
    if name in CONFIG_MAPPING:
        return name
    if not name.strip() or name[0] in "./~" or "/" in name or Path(name).exists():
        return None
    seeing = sorted({*MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, *PROVEN})
    said = _plain(name)
    exact = next((family for family in CONFIG_MAPPING if _plain(family) == said), None)
    family = exact or name_family(name, seeing)
    if family is None:
        plain = {_plain(family): family for family in seeing}
        near = [plain[close] for close in difflib.get_close_matches(said, plain, n=3)]
        meant = f"did you mean {' or '.join(near)}? Else give" if near else "give"
        raise ValueError(
            f"transformers knows no family {name!r}: {meant} a Hub id such as {HUB_IDS['7b']}, or "
            "the folder of a checkpoint; st3 models lists families"
        )
    return family


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))


def _on_family(family: str) -> Verdict:
    example = EXAMPLES.get(family)
    shape = next((short for short, place in HUB_IDS.items() if place == example), None)
    layers = known_config(shape).get_text_config().num_hidden_layers if shape else None
    texts = PROVEN.get(family)
    if texts is not None:
        return Verdict(family, texts, True, example, shape, layers)
    try:
        config: Any = CONFIG_MAPPING[family]()
    except (ValueError, TypeError, AttributeError, KeyError, ImportError) as error:
        what = " ".join(str(error).split())
        raise ValueError(
            f"the family {family!r} has no configuration by default ({what}): give a checkpoint"
        ) from error
    for token in _TOKENS:
        if getattr(config, token, 0) is None:  # checkpoints set it
            setattr(config, token, _ANY)
    judge(config)
    return Verdict(family, (config.get_text_config().model_type,), False, example, shape, layers)
