"""The compaction oracle, for layers that keep a state: stock layers on gathered tokens, one row.

A recurrent layer cannot hide a token: its state decays over whatever passes. There trimming means
that the token never reached the layer, so the oracle feeds each stock layer what is left, from a
stock cache, and picks it apart by plain lists.
"""

from __future__ import annotations

from typing import Any

import torch
from families.masked import Forced
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


def _watched(model: Any, decoder: Any, inputs: Any, answer: torch.Tensor) -> list[tuple[Any, Any]]:
    """What stock feeds its decoder in each forward: embeddings, and rotary phases by kind."""
    fed: list[tuple[Any, dict[Any, Any]]] = []

    def turn(module: Any, args: Any, kwargs: Any, out: Any) -> None:
        fed[-1][1][kwargs.get("layer_type")] = out

    handles = [
        decoder.register_forward_pre_hook(
            lambda module, args, kwargs: fed.append((kwargs["inputs_embeds"], {})), with_kwargs=True
        ),
        decoder.rotary_emb.register_forward_hook(turn, with_kwargs=True),
    ]
    count = answer.shape[1]
    model.generate(**inputs, max_new_tokens=count, min_new_tokens=count, do_sample=False,
                   logits_processor=[Forced(answer)])  # fmt: skip
    for handle in handles:
        handle.remove()
    return fed


def compacted_logits(
    model: Any, decoder: Any, inputs: dict[str, Any], answer: torch.Tensor, plan: Any, visual: Any
) -> tuple[torch.Tensor, dict[int, list[int]]]:
    """Logits [1, T, vocabulary] of the answer [1, T], and the places of visual tokens by layer."""
    forwards = _watched(model, decoder, inputs, answer)
    prompt, everyone = inputs["input_ids"].shape[1], visual[0].nonzero().flatten().tolist()
    text = [place for place in range(prompt) if place not in everyone]
    kinds = decoder.config.layer_types
    cache = DynamicCache(config=decoder.config)
    for number, kind in enumerate(kinds):
        if kind == "sliding_attention":  # its own would let go of keys by their count
            cache.layers[number] = DynamicLayer()
    scores: dict[int, dict[int, float]] = {}
    ranked: dict[int, list[int]] = {}  # by a group's first layer, least important first
    held: dict[int, list[int]] = {}  # places of a layer's keys
    kept: dict[int, list[int]] = {}
    logits = []
    before = decoder.config._attn_implementation
    decoder.config._attn_implementation = {"": "eager"}
    for step, (hidden, turns) in enumerate(forwards):
        places = list(range(prompt)) if step == 0 else [prompt + step - 1]
        for number, layer in enumerate(decoder.layers, 1):
            group = next(g for g in plan.groups if g.first <= number <= g.last)
            attends = hasattr(layer, "self_attn")
            if step == 0 and number == group.first > 1:
                score = scores[group.scored_in]
                order = sorted((x for x in places if x in everyone), key=lambda x: score[x])
                count = plan.schedule.count(number, len(everyone))
                ranked[group.first] = order[len(order) - count :]
                left = sorted(text + ranked[group.first])
                hidden = hidden[:, [places.index(x) for x in left]]
                places = left
            if step == 0:
                kept[number] = [x for x in places if x in everyone]
                held[number] = list(places)
            phases = turns.get(kinds[number - 1], turns.get(None))
            if step == 0:
                phases = phases and tuple(turn[:, places] for turn in phases)
            elif attends:
                order = ranked.get(group.first) or sorted(
                    everyone, key=lambda x: scores[group.scored_in][x]
                )
                count = plan.schedule.count(number, len(everyone), step)
                gone = {*everyone} - {*order[len(order) - count :]}
                index = [n for n, x in enumerate(held[number]) if x not in gone]
                mine = cache.layers[number - 1]
                mine.keys, mine.values = mine.keys[:, :, index], mine.values[:, :, index]
                held[number] = [held[number][n] for n in index] + places
            mask, weights = None, []
            if attends:
                behind = torch.tensor(places)[:, None] - torch.tensor(held[number])
                unseen = behind < 0
                if kinds[number - 1] == "sliding_attention":
                    unseen = unseen | (behind >= decoder.config.sliding_window)
                mask = torch.zeros(behind.shape, dtype=hidden.dtype)
                mask = mask.masked_fill(unseen, float("-inf"))[None, None]
                handle = layer.self_attn.register_forward_hook(
                    lambda module, args, out, seen=weights: seen.append(out[1])
                )
            hidden = layer(
                hidden, position_embeddings=phases, attention_mask=mask, past_key_values=cache
            )
            if attends:
                handle.remove()
                if step == 0:
                    row = weights[0][0].mean(0)[-1].tolist()
                    scores[number] = dict(zip(places, row, strict=True))
        norm = getattr(decoder, "norm", None) or decoder.embedding_norm
        logits.append(model.lm_head(norm(hidden[:, -1:]))[:, 0])
    decoder.config._attn_implementation = {"": before}
    return torch.stack(logits, 1), kept
