"""A prompt's embeddings, brought to the decoder once a selector has chosen among them.

Here, before the decoder does anything with them: what is merged is merged in all that a decoder
makes of embeddings. Nothing leaves yet; that is for layer 1 (`st3.engine.prefill`).
"""

from __future__ import annotations

from functools import partial

import torch

from st3.engine.prefill import Prefill


def bring(prefill: Prefill, hidden: torch.Tensor) -> torch.Tensor:
    """The prompt's embeddings [B, n, d] as the decoder gets them: the same where nothing chooses.

    Raises:
        ValueError: see `Entrance.choose`.
    """
    entrance, now = prefill.entrance, prefill.now
    if entrance is None:
        return hidden
    with prefill.record.choosing():
        seen = hidden
        if prefill.features is not None:  # some decoders add all that a picture is
            seen = prefill.features.add(0, hidden, now.place, now.valid)
        frames = partial(prefill.scoring.frames_of, now.place)
        entrance.choose(seen, now.visual, now.valid, frames, prefill.record.notes)
        if entrance.adaptive:
            prefill.turn.entering = entrance.entering
            prefill.enter_group(prefill.group)
        merging = entrance.merging
        if merging is None:
            return hidden
        hidden = merging(hidden)
        prefill.turn.merges[:] = [hidden]
        if prefill.features is not None:
            prefill.turn.features.update(prefill.features.merge(merging))
    return hidden


def enters(prefill: Prefill) -> torch.Tensor:
    """bool [B, n]: the tokens of the prompt that will enter layer 1, once a selector has chosen."""
    entrance, now = prefill.entrance, prefill.now
    assert entrance is not None
    stays = (entrance.importance(now.ordinal) > 1) | ~now.visual
    return stays if now.valid is None else stays & now.valid
