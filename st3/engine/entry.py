"""What a forward of the decoder becomes: a generation that begins, a step of one, a next turn.

Called before the decoder runs, with what the module that merges pictures into text was told.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from st3.engine.asked import (
    check_cache,
    check_once,
    check_pictured,
    check_turn,
    fed_tokens,
    in_chunks,
    padding_mask,
    take_features,
    unpadded,
)
from st3.engine.bringing import bring
from st3.engine.cache import TrimmedCache
from st3.engine.decode_graph import DecodeGraph
from st3.engine.follow import Features
from st3.engine.forward import Forward
from st3.engine.frames import frame_numbers
from st3.engine.moved import compacts, moved_up
from st3.engine.pieces import by_kind, check_moves, note_joined, video_id, with_pieces
from st3.engine.pooled_tower import look_at_tower
from st3.engine.prefill import Prefill
from st3.engine.prompt import Prompt, layout
from st3.engine.record import Record
from st3.engine.scope import Scope
from st3.engine.session import TrimSession
from st3.engine.sight import Sight, Wish
from st3.engine.window_layer import layer_for
from st3.families.parts import Parts
from st3.families.patches import lengths_of


class Trim(Scope):
    """One open `with st3.trim(...)`."""

    def __init__(self, session: TrimSession) -> None:
        super().__init__()
        self.session = session
        selector = session.plan.selector
        asks = () if selector is None else selector.asks()
        if "cells" in session.plan.scorer.needs:
            asks = (*asks, "grid")
        self.moves = selector is not None and selector.spares == "pictures"
        self.films = self.moves or "videos" in asks
        self.differs = Wish.of(asks).any or "frames" in asks
        """Whether it looks at what prompts of one layout do not have in common."""
        self.wish = Wish.of((*asks, "grid") if self.films else asks)  # to see videos come
        self.graph: DecodeGraph | None = None


@dataclass(frozen=True)
class Seen:
    """What the module that merges pictures into text was called with.

    Attributes:
        ids: int64 [B, n]. `visual`: bool [B, n], which tokens are visual; None without `input_ids`.
        mask: [B, tokens so far] or None, the attention mask.
        pictured: whether pictures came along.
        encoded: what they had been encoded to beforehand, by kind, if they had.
        sights: what was seen of the vision tower at that, by kind.
    """

    ids: torch.Tensor | None
    visual: torch.Tensor | None
    mask: torch.Tensor | None
    pictured: bool
    encoded: Any = None
    sights: dict[str, Sight] = field(default_factory=dict)

    @property
    def lengths(self) -> list[int]:
        """Visual tokens of each picture, or video, in order; nothing where there are both."""
        if self.sights:
            (sight, *more) = self.sights.values()
            return [] if more else sight.lengths
        if not self.encoded or len(self.encoded) > 1:
            return []
        (encoded,) = self.encoded.values()
        features = getattr(encoded, "pooler_output", None)
        return [] if features is None else lengths_of(features)


NOTHING = Seen(None, None, None, pictured=False)


def go_on(trim: Trim, forward: Forward, seen: Seen, kwargs: dict[str, Any]) -> dict[str, Any]:
    """A decode step, or a user's next turn; returns arguments for the decoder.

    Raises:
        ValueError: a turn that cannot be served; nothing has changed then.
    """
    tokens, record = fed_tokens(kwargs), forward.record
    record.check_choices()
    if trim.graph is not None:
        trim.graph.prepare(tokens, kwargs, forward)
    if tokens == 1:
        record.step(tokens)
    else:
        _next_turn(trim, forward, seen, tokens, kwargs)
    changed = forward.arguments() | unpadded(kwargs, padded=record.padded)
    return changed | _brought(forward, kwargs) | moved_up(forward, kwargs)


def _next_turn(
    trim: Trim, forward: Forward, seen: Seen, tokens: int, kwargs: dict[str, Any]
) -> None:
    """A user's next turn, with pictures or without."""
    record, cache = forward.record, kwargs["past_key_values"]
    mask = padding_mask(seen.mask)
    mask = None if mask is None else mask[:, -tokens:].bool()
    visual = seen.visual
    if visual is None:  # embeddings of text
        visual = torch.zeros(len(record.prompt.visual), tokens, dtype=torch.bool)
    if mask is not None:
        visual = visual & mask.to(visual.device)
    prompt = layout(visual, mask, seen.lengths)
    check_pictured(prompt, pictured=seen.pictured)
    check_turn(forward.parts, prompt)
    if any(prompt.visual) and in_chunks():
        raise ValueError(
            "st3 needs a whole turn to choose what to drop: leave prefill_chunk_size unset"
        )
    record.padded |= not prompt.full
    mask = None if prompt.full else mask
    if not any(prompt.visual):
        record.step(tokens)
        for layer in cache.trimmed():
            layer.expect(tokens, mask)
        return
    prompt = _known(trim, forward.parts, prompt, visual, seen)
    turn = record.begin_turn(forward.session.plan.for_prompt(tokens), prompt)
    features = take_features(kwargs)
    forward.prefill = Prefill(record, turn, visual, mask, cache)
    if features is not None:
        forward.prefill.features = Features(*features)
    forward.prefill.scoring.frames = _frames(forward.parts, visual, seen, kwargs)
    look_at_tower(forward.prefill, seen.sights, partial(_masks, forward.parts, visual, seen))
    note_joined(record.notes, forward.parts.merger, prompt)


def begin(
    trim: Trim, parts: Parts, backend: str, seen: Seen, kwargs: dict[str, Any]
) -> dict[str, Any]:
    """A prefill; returns the decoder's arguments.

    Raises:
        ValueError: a prompt, a cache or a way of computing that cannot be served.
    """
    session, graph = trim.session, trim.graph
    cache, mask = kwargs.get("past_key_values"), padding_mask(seen.mask)
    check_cache(cache)
    check_once(parts)
    if seen.visual is None:
        raise ValueError("st3.trim needs input_ids to know which tokens are visual")
    if in_chunks():
        raise ValueError(
            "st3 needs the whole prompt to choose what to drop: leave prefill_chunk_size unset"
        )
    visual = seen.visual if mask is None else seen.visual & mask.bool()
    prompt = layout(visual, mask, seen.lengths)
    check_pictured(prompt, pictured=seen.pictured)
    prompt = _known(trim, parts, prompt, visual, seen)
    own = None if prompt.full else mask  # a recording must read no mask of one call
    use_cache = kwargs.get("use_cache")
    if use_cache is None:
        use_cache = parts.decoder.config.use_cache

    plan = session.plan.for_prompt(prompt.tokens)
    if trim.moves:
        assert plan.selector is not None
        check_moves(prompt, plan.selector.name)
    features = take_features(kwargs)

    def prefill(visual: torch.Tensor) -> Forward:
        new, old = None, session.last_cache
        if use_cache:
            fresh = [
                layer_for(parts.windows.get(number), prompt.last_visual, plan.method.kv_cache_dtype)
                for number in range(1, plan.layers + 1)
            ]
            if graph is not None:
                graph.reuse(fresh, old.layers if old is not None else [])
            known: dict[int, Any] = parts.recurrent_layers()
            layers = [known.get(number, layer) for number, layer in enumerate(fresh, 1)]
            new = TrimmedCache.in_place_of(cache, layers)
        if graph is not None:
            session.retire(new)
        record = Record(plan, prompt, visual, own, new)
        record.mark = session.mark
        note_joined(record.notes, parts.merger, prompt)
        session.begin(record, new)
        thinning = Prefill(record, record.turns[0], visual, own, new)
        if features is not None:
            thinning.features = Features(*features)
        thinning.scoring.frames = _frames(parts, visual, seen, kwargs)
        look_at_tower(thinning, seen.sights, partial(_masks, parts, visual, seen))
        return Forward(session, record, backend, new, thinning)

    if graph is not None:
        graph.rest()
        plain = features is None and not plan.scorer.looks_at_frames
        plain = plain and not trim.differs and not compacts(plan)
        plain = plain and not plan.schedule.entering.adaptive
        wanted = use_cache and plain and graph.takes_prefill(kwargs)
        if wanted and graph.prefill.prepare(prompt, visual, kwargs, prefill):
            return kwargs
    forward = prefill(visual)
    changed = forward.arguments() | unpadded(kwargs, padded=not prompt.full)
    return kwargs | changed | _brought(forward, kwargs) | moved_up(forward, kwargs)


def _brought(forward: Forward, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Embeddings among which a selector has chosen; nothing where there is none."""
    prefill = forward.prefill
    if prefill is None or prefill.entrance is None:
        return {}
    return {"inputs_embeds": bring(prefill, kwargs["inputs_embeds"])}


def _masks(parts: Parts, visual: torch.Tensor, seen: Seen) -> dict[str, torch.Tensor]:
    """bool [B, n]: visual tokens of what was seen, by kind."""
    return by_kind(parts.merger.config, visual, seen.ids, seen.sights)


def _known(trim: Trim, parts: Parts, prompt: Prompt, visual: torch.Tensor, seen: Seen) -> Prompt:
    """A prompt's layout with what was seen of its pictures and videos."""
    return with_pieces(
        prompt, parts.merger, visual, seen.ids, seen.sights, films=trim.films, moves=trim.moves
    )


def _frames(
    parts: Parts, visual: torch.Tensor, seen: Seen, kwargs: dict[str, Any]
) -> Callable[[], torch.Tensor]:
    """Makes the frame of each visual token, when a scorer asks."""
    tokens, config = parts.adapter.frame_tokens, parts.merger.config
    positions = kwargs.get("position_ids")

    def made() -> torch.Tensor:
        film, video = None, video_id(config)
        if tokens is not None and seen.ids is not None and video is not None:
            film = seen.ids == video
        return frame_numbers(visual, positions, film, tokens(config) if tokens else None)

    return made
