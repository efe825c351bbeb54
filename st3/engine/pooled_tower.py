"""What was seen of the vision tower, brought to the pools from which a selector chooses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from st3.engine.entrance import Entrance
from st3.engine.lines import Lines, grids, lines_of
from st3.engine.prefill import Prefill
from st3.engine.sight import Sight

_AVERAGE = "no class token: attention that a patch gets from all of its picture, on average"
_MOVED = "windows in the tower: attention of the nearest block that sees a whole picture"


class PooledTower:
    """A `st3.methods.view.Tower` of one prefill.

    Args:
        sights: of all its pictures and of all its videos, in order, by kind.
        masks: bool [B, n], the places of their tokens, by kind.
        notes: to be added to.
        entrance: whose pools.

    Raises:
        ValueError: what was seen is not what the prompts hold.
    """

    def __init__(
        self, sights: Mapping[str, Sight], masks: Mapping[str, torch.Tensor], notes: list[str],
        entrance: Entrance,
    ) -> None:  # fmt: skip
        self.sights, self.masks, self.entrance = sights, masks, entrance
        name, total = entrance.selector.name, sum(entrance.prompt.visual)
        for sight in sights.values():
            if sight.trouble:
                raise ValueError(
                    f"the method {name!r} does not fit this model: {sight.trouble}; take one that "
                    "looks at the tokens alone (st3 methods says what each needs)"
                )
            average = any(asked.startswith(("attention", "joint")) for asked in sight.attention)
            if average and not sight.class_token and _AVERAGE not in notes:
                notes.append(_AVERAGE)
            if sight.moved and _MOVED not in notes:
                notes.append(_MOVED)
        seen = sum(sum(sight.lengths) for sight in sights.values())
        if seen != total:
            raise ValueError(
                f"the method {name!r} saw {seen} visual tokens leave the vision tower, and the "
                f"prompts have places for {total}: give each prompt its own pictures, and one "
                "sequence"
            )

    def attention(self, layer: str) -> torch.Tensor:
        """See `Tower`."""
        return self._asked(f"attention {layer}")

    def received(self, layer: str) -> torch.Tensor:
        """See `Tower`."""
        return self._asked(f"received {layer}")

    def joint(self, layer: str) -> torch.Tensor:
        """See `Tower`."""
        return self._asked(f"joint {layer}")

    def keys(self, layer: str) -> torch.Tensor:
        """See `Tower`."""
        found = {kind: sight.keys[f"keys {layer}"] for kind, sight in self.sights.items()}
        shape = next(iter(found.values())).shape[1:]
        pooled = self._pooled({kind: keys.flatten(1) for kind, keys in found.items()})
        return torch.where(pooled.isinf(), 0, pooled).view(*pooled.shape[:2], *shape)

    def crops(self) -> torch.Tensor:
        """See `Tower`."""
        found: dict[str, torch.Tensor] = {}
        for kind, sight in self.sights.items():
            assert sight.crops is not None
            found[kind] = sight.crops[:, None]
        return self._pooled(found)[..., 0].long()

    def _asked(self, what: str) -> torch.Tensor:
        found = {kind: sight.attention[what][:, None] for kind, sight in self.sights.items()}
        return self._pooled(found)[..., 0]

    def features(self) -> torch.Tensor:
        """See `Tower`."""
        found = {}
        for kind, sight in self.sights.items():
            if sight.features is None:
                raise ValueError("nothing was seen of what the projector gets")
            found[kind] = sight.features
        pooled = self._pooled(found)
        return torch.where(pooled.isinf(), 0, pooled)

    def _pooled(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Float32 [tokens, c] by kind, as [G, n, c]."""
        full: Any = 0
        for kind, found in values.items():
            mask = self.masks[kind][..., None]
            wide = found.float().to(mask.device)
            here = wide.new_zeros(*mask.shape[:2], wide.shape[1])
            full = full + here.masked_scatter(mask, wide)
        return self.entrance.pooled(full)


def look_at_tower(
    prefill: Prefill,
    sights: Mapping[str, Sight],
    masks: Callable[[], Mapping[str, torch.Tensor]],
) -> None:
    """Tell a prefill, and its entrance, what was seen, if anything was.

    Args:
        sights: by kind, `image` or `video`.
        masks: makes by kind bool [B, n], the places of its tokens.
    """
    if not sights:
        return
    entrance, notes, prompt = prefill.entrance, prefill.record.notes, prefill.prompt

    def lines() -> tuple[Lines, ...]:
        return lines_of(prompt, sights, masks())

    prefill.scoring.grids = lambda: grids(prompt.pictures, lines())
    if entrance is not None:
        entrance.tower = lambda entrance: PooledTower(sights, masks(), notes, entrance)
        entrance.lines = lines
