"""The masked oracle for any family: stock transformers at full length, hiding what is gone.

Nothing is removed. `generate` runs with an attention function of the oracle's own under the masks
that the model itself makes; what a method drops is hidden there, by choices that are made here from
this attention. The answer is forced, so that every step can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from transformers import AttentionInterface, DynamicCache, LogitsProcessor
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from st3.inference.decoding import decode
from st3.verification.choice import Choice

_NAME = "st3_oracle"
_EARLY = {"deepstack_visual_embeds": "visual_pos_masks", "deepstack_features": "vision_mask"}
"""Arguments of decoders with features to add, and those that say to which tokens."""
_RUNS: list[Hidden] = []


@dataclass
class Hidden:
    """What is hidden from whom; layers count from 1.

    Attributes:
        schedule, groups: of the generation to compare with.
        visual: bool [B, n].
        lenders: layer -> the layer whose keys it uses.
        choice: how tokens are chosen.
        seen: layer -> what it says of every token, [B][n].
        entered: of each row, places of the visual tokens that a selector let in, the most important
            first; None where all enter.
        uncounted: bool [B, n], tokens that count for no position; None where all count.
        embeddings: float [B, n, d], what the decoder gets of the prompt in place of its own; None
            where no token was merged into another. `features`: the same of what it adds behind
            early layers, by layer.
    """

    schedule: Any
    groups: Any
    visual: torch.Tensor
    lenders: dict[int, int]
    choice: Choice = field(default_factory=Choice)
    seen: dict[int, list[list[float]]] = field(default_factory=dict)
    entered: list[list[int]] | None = None
    uncounted: torch.Tensor | None = None
    embeddings: torch.Tensor | None = None
    features: Mapping[int, torch.Tensor] = field(default_factory=dict)
    _alive: dict[tuple[int, int, int], list[int]] = field(default_factory=dict)
    _places: dict[int, list[int]] = field(default_factory=dict)

    def everyone(self, row: int) -> list[int]:
        """Places of a row's visual tokens."""
        if row not in self._places:
            self._places[row] = self.visual[row].nonzero().flatten().tolist()
        return self._places[row]

    def alive(self, layer: int, row: int, generated: int = 0) -> list[int]:
        """Places of those alive in a layer, the least important first."""
        group = next(g for g in self.groups if g.first <= layer <= g.last)
        everyone = self.everyone(row)
        enter = everyone if self.entered is None else self.entered[row][::-1]
        count = self.schedule.inside.count(layer, len(enter), generated)
        if count == len(enter):
            return enter
        key = group.first, row, generated
        if key not in self._alive:
            if generated:
                pool = self.alive(layer, row)
            else:
                pool = enter if group.first == 1 else self.alive(group.first - 1, row)

            def told() -> list[int]:
                assert self.choice.told is not None
                return [everyone[n] for n in self.choice.told(group.first, row, generated)]

            self._alive[key] = self.choice.pick(
                pool, self._scores(group.scored_in, row), count, told
            )
        return self._alive[key]

    def gone(self, layer: int, row: int, generated: int) -> list[int]:
        """Places of those hidden in a layer."""
        alive = self.alive(self.lenders.get(layer, layer), row, generated)
        return sorted({*self.everyone(row)} - {*alive})

    def _scores(self, layer: int, row: int) -> list[float]:
        """By place."""
        if layer == 0:
            assert self.entered is not None
            standing = {place: -n for n, place in enumerate(self.entered[row])}
            return [standing.get(place, -len(standing)) for place in range(self.visual.shape[1])]
        first = layer - self.choice.layers + 1
        said = [self.seen[n][row] for n in range(first, layer + 1) if n in self.seen]
        return [sum(each) for each in zip(*said, strict=True)]


class Forced(LogitsProcessor):
    """Makes `generate` say an answer [B, T]."""

    def __init__(self, answer: torch.Tensor) -> None:
        self.answer, self.said = answer, 0

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Logits [B, vocabulary] that leave one token."""
        only = torch.full_like(scores, float("-inf"))
        only.scatter_(1, self.answer[:, self.said : self.said + 1], 0.0)
        self.said += 1
        return only


def masked_logits(
    model: Any,
    decoder: Any,
    inputs: dict[str, Any],
    answer: torch.Tensor,
    hidden: Hidden,
    cache: Any = None,
) -> torch.Tensor:
    """Logits [B, T, vocabulary] of the answer's tokens [B, T].

    Args:
        model: any that fits; it is left as it was.
        decoder: its text model.
        inputs: of the prompts.
        answer: what is said.
        hidden: what is hidden; knows afterwards what was alive.
        cache: an empty one of transformers' interface, which holds everything.

    Raises:
        ValueError: attention of a kind that the oracle does not know.
    """
    AttentionInterface.register(_NAME, _attention)
    AttentionMaskInterface.register(_NAME, _mask)
    before = decoder.config._attn_implementation
    handle = decoder.register_forward_pre_hook(partial(_merge, hidden), with_kwargs=True)
    _RUNS.append(hidden)
    decoder.config._attn_implementation = {"": _NAME}
    try:
        said = decode(
            model, inputs, endless=True, past_key_values=DynamicCache() if cache is None else cache,
            max_new_tokens=answer.shape[1], return_dict_in_generate=True, output_logits=True,
            logits_processor=[Forced(answer)],
        )  # fmt: skip
    finally:
        handle.remove()
        decoder.config._attn_implementation = {"": before}
        _RUNS.pop()
    return torch.stack(said.logits, 1)


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    if s_aux is not None:
        raise ValueError("the masked oracle knows no attention sinks")
    hidden, layer = _RUNS[-1], module.layer_idx + 1
    rows, heads, queries, _size = query.shape
    key, value = (x.repeat_interleave(heads // key.shape[1], 1) for x in (key, value))
    keys, generated = key.shape[2], key.shape[2] - hidden.visual.shape[1]
    wide = torch.promote_types(query.dtype, torch.float32)
    logits = query.to(wide) @ key.to(wide).transpose(2, 3) * scaling
    if softcap:
        logits = (logits / softcap).tanh() * softcap
    allowed = torch.ones(rows, 1, queries, keys, dtype=torch.bool, device=query.device)
    if mask is not None:
        allowed = allowed & mask
    for row in range(rows):
        allowed[row, :, :, hidden.gone(layer, row, generated)] = False
    own = torch.arange(queries, device=query.device)
    allowed[:, :, own, keys - queries + own] = True  # a token sees itself
    weights = logits.masked_fill(~allowed, float("-inf")).softmax(-1)
    if queries > 1:
        hidden.seen[layer] = hidden.choice.score(weights, key, hidden.visual)
    return (weights @ value.to(wide)).to(query.dtype).transpose(1, 2).contiguous(), weights


def _merge(hidden: Hidden, decoder: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    changed: dict[str, Any] = {}
    if hidden.uncounted is not None:
        changed["position_ids"] = positions_without(hidden.uncounted, kwargs)
    if hidden.embeddings is None or kwargs["inputs_embeds"].shape[1] == 1:
        return args, kwargs | changed
    changed["inputs_embeds"] = hidden.embeddings
    for name, where in _EARLY.items():
        if kwargs.get(name) is not None and hidden.features:
            mask = kwargs[where]
            mask = mask[..., 0] if mask.dim() == 3 else mask
            merged = {layer: values[mask] for layer, values in hidden.features.items()}
            early = isinstance(kwargs[name], Mapping)
            changed[name] = merged if early else [merged[n] for n in sorted(merged)]
    return args, kwargs | changed


def positions_without(gone: torch.Tensor, asked: Mapping[str, Any]) -> torch.Tensor:
    """int64 [B, m]: positions of a forward's tokens, counted without those `gone` [B, n].

    Args:
        gone: bool, of the prompt.
        asked: what the decoder is called with: the prompt, or what comes behind it.
    """
    tokens, cache = asked["inputs_embeds"].shape[1], asked.get("past_key_values")
    positions = asked.get("position_ids")
    if positions is None:
        seen = 0 if cache is None else cache.get_seq_length()
        positions = torch.arange(seen, seen + tokens, device=gone.device)[None]
    before = gone.cumsum(1) if tokens == gone.shape[1] else gone.sum(1, keepdim=True)
    return positions - before.to(positions.device)


def _mask(*args: Any, **kwargs: Any) -> Any:
    return sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})
