"""Is it for my model, in a word: of a family, a short name, a folder or a Hub id; no weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING

from st3.families.examples import EXAMPLES
from st3.families.parts import judge, unproven
from st3.families.proven import PROVEN
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
    """

    family: str
    text_models: tuple[str, ...]
    proven: bool
    example: str | None


def verdict(name: str) -> Verdict:
    """Look at what a user calls a model, or at a family's default configuration.

    Raises:
        ValueError: it cannot be trimmed, and why; or it is no model, see `find_config`.
        OSError: not found, or not reachable.
    """
    if name in CONFIG_MAPPING and not Path(name).is_dir():
        return _on_family(name)
    config = known_config(name) if name in PRESETS else find_config(name)
    text = config.get_text_config().model_type
    return Verdict(
        config.model_type, (text,), unproven(config) is None, EXAMPLES.get(config.model_type)
    )


def _on_family(family: str) -> Verdict:
    texts = PROVEN.get(family)
    if texts is not None:
        return Verdict(family, texts, True, EXAMPLES.get(family))
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
    return Verdict(family, (config.get_text_config().model_type,), False, EXAMPLES.get(family))
