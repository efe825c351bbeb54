"""Does a method fit a model: told from its configuration, without weights."""

from __future__ import annotations

from typing import Any

from st3.engine.moved import ON_A_GRID
from st3.engine.pieces import as_pictures
from st3.families.meta import meta_model
from st3.families.parts import find_parts
from st3.families.patches import blocks_of, has_class_token, tower_of

_MADE_FROM_FEATURES = ("features", "text", "frames", "videos", "grid")


def suits(method: Any, config: Any) -> tuple[bool, str]:
    """Whether a method fits a model of this configuration, and what it does otherwise there.

    Args:
        method: makes it: with the parameters that were asked for, or a class of the registry, whose
            defaults count then.
        config: of a model that fits st3.

    Raises:
        ValueError: the model does not fit st3 at all.
    """
    parts = find_parts(meta_model(config))
    try:
        made = method()
        made.schedule(len(parts.layers))
    except ValueError as error:
        return False, str(error)
    if getattr(made, "positions", "") == "compact" and hasattr(parts.merger, "get_rope_index"):
        return False, ON_A_GRID
    selector = made.selector
    needs = () if selector is None else selector.asks()
    if selector is not None and selector.spares == "pictures" and as_pictures(parts.merger):
        return True, "a video comes as pictures: neighbours of one size are its frames"
    if all(need in _MADE_FROM_FEATURES for need in needs):
        return True, "the text's embeddings stand in for a text encoder" * ("text" in needs)
    tower = tower_of(parts.merger)
    if tower is None or not blocks_of(tower):
        return False, "its vision tower has no blocks of attention to look into"
    if any(need.startswith(("attention", "joint")) for need in needs) and not has_class_token(
        tower
    ):
        return True, "no class token: attention from all patches instead"
    return True, ""
