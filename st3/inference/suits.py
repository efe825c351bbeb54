"""Does a method fit a model: told from its configuration, without weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from st3.engine.moved import ON_A_GRID
from st3.engine.pieces import as_pictures
from st3.engine.sight import OF_ITS_OWN, OF_LAYERS
from st3.families.meta import hides_features, meta_model
from st3.families.parts import find_parts
from st3.families.patches import (
    MIXED,
    blocks_of,
    has_class_token,
    has_queries,
    named_block,
    packs_tiles,
    tower_of,
    whole_block,
)
from st3.methods.base import Selector

_MADE_FROM_FEATURES = ("features", "text", "frames", "videos", "grid")


def looks_at_tower(selector: Selector | None) -> bool:
    """Whether a method needs more than what a tower hands on."""
    return selector is not None and not {*selector.asks()} <= {*_MADE_FROM_FEATURES}


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
    if not looks_at_tower(selector):
        return True, "; ".join(_of_tokens(needs, parts.merger))
    tower = tower_of(parts.merger)
    if tower is None or not blocks_of(tower):
        return False, "its vision tower has no blocks of attention to look into"
    if has_queries(parts.merger):
        return False, MIXED
    if hides_features(parts.merger):
        return False, OF_ITS_OWN
    return True, "; ".join(_otherwise(needs, parts.merger, tower))


def _of_tokens(needs: Sequence[str], merger: Any) -> Iterator[str]:
    """What a method does with the tokens of this family that its authors' code does not."""
    if "text" in needs:
        yield "the text's embeddings stand in for a text encoder"
    if "grid" in needs and packs_tiles(merger):
        yield "where tiles are packed, stretches of the prompt in place of a grid"


def _otherwise(needs: Sequence[str], merger: Any, tower: Any) -> Iterator[str]:
    """What a method does with this tower that its authors' code does not."""
    layers = [need.rpartition(" ")[2] for need in needs if need.partition(" ")[0] in OF_LAYERS]
    blocks = len(blocks_of(tower))
    if any(need.startswith(("attention", "joint")) for need in needs) and not has_class_token(
        tower
    ):
        yield "no class token: attention from all patches instead"
    named = [named_block(merger, blocks, layer) for layer in layers]
    if any(whole_block(tower, block) != block for block in named):
        yield "windows in the tower: the nearest block that sees a whole picture instead"
    if "tiles" in needs and not packs_tiles(merger):
        yield "no picture of several tiles: attention alone, as fastervlm"
    yield from _of_tokens(needs, merger)
