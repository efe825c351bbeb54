"""Positions counted without the tokens that did not enter layer 1, where a method asks for that.

By default what stays keeps the position that it had. Many authors' code hands the decoder a shorter
prompt instead, whose positions have no gaps; their tables are made so.
"""

from __future__ import annotations

from typing import Any

import torch

from st3.engine.asked import fed_tokens
from st3.engine.bringing import enters
from st3.engine.forward import Forward
from st3.engine.order import to_device
from st3.engine.plan import Plan

ON_A_GRID = (
    "positions=compact is for models whose positions have one axis; in this one they lie on a "
    "grid: leave positions=original"
)


def compacts(plan: Plan) -> bool:
    """Whether a plan asks for it."""
    return getattr(plan.method, "positions", "original") == "compact"


def moved_up(forward: Forward, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the decoder that change: nothing where nothing has moved.

    Raises:
        ValueError: positions on several axes, whose gaps are part of the picture.
    """
    record, prefill = forward.record, forward.prefill
    if not compacts(record.plan):
        return {}
    entrance = None if prefill is None else prefill.entrance
    if entrance is None and not any(record.shift):
        return {}
    given, tokens = kwargs.get("position_ids"), fed_tokens(kwargs)
    if given is not None and given.dim() > 2:
        raise ValueError(ON_A_GRID)
    hidden: torch.Tensor = kwargs["inputs_embeds"]
    if given is None:
        seen = 0 if forward.cache is None else forward.cache.get_seq_length()
        given = torch.arange(seen, seen + tokens, device=hidden.device)[None]
    changed: dict[str, Any] = {}
    moved = given - to_device(record.shift, given.device)[:, None]
    if entrance is not None:
        assert prefill is not None
        with record.choosing():
            gone = prefill.now.visual & ~enters(prefill)
        moved = moved - gone.long().cumsum(1).to(moved.device)
        turn = prefill.turn
        for row, (all_of_it, enter) in enumerate(
            zip(turn.prompt.visual, turn.entering, strict=True)
        ):
            record.shift[row] += all_of_it - enter
        if forward.cache is None:  # transformers takes positions that stand still for packing
            changed["attention_mask"] = torch.ones(hidden.shape[:2], device=hidden.device)
            if record.padding is not None:
                changed["attention_mask"] = record.padding.long()
    return changed | {"position_ids": moved}
