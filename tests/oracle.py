"""The masked oracle: what trimming must compute, written without a line of the library.

A full-length LLaMA forward in double precision, over prompt and answer at once. Nothing is ever
removed: each layer has a mask that hides, from each query, the visual tokens that are gone by then.
The choice of tokens is made here as well, with plain loops, from this forward's own attention.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Setting:
    """P, S, R of the paper and the annealing share a(t); or `keeps`, another keep(layer)."""

    prune: float = 0.0
    stride: int = 1
    ratio: float = 0.0
    share: Callable[[int], float] = lambda t: 1.0
    keeps: Callable[[int], float] | None = None

    def keep(self, layer: int) -> float:
        """Equation 9's left-hand side, layer counted from 1."""
        if self.keeps is not None:
            return self.keeps(layer)
        if layer < 4:
            return 1.0
        return 1 - self.prune - math.floor((layer - 3) / self.stride) * self.ratio


def cosine(tau: int) -> Callable[[int], float]:
    """Half a cosine from 1 at 0 to 0 at tau."""
    return lambda t: 0.5 + 0.5 * math.cos(math.pi * min(t / tau, 1))


def oracle_logits(
    model: Any,
    inputs: dict[str, Any],
    answer: torch.Tensor,
    setting: Setting,
    chosen: list[list[list[int]]] | None = None,
) -> Any:
    """Logits [B, T, vocabulary] of the T answer tokens [B, T], and the kept visual tokens.

    The second result is kept[row][layer - 1]: the prompt positions of the visual tokens that are
    alive in that layer at prefill. `chosen`, the same as numbers of visual tokens, takes the choice
    out of the oracle's hands: in half precision near ties fall either way. It fits no annealing.
    """
    logits, _, kept = oracle_states(model, inputs, answer, setting, chosen)
    return logits[:, inputs["input_ids"].shape[1] - 1 :], kept


def oracle_states(
    model: Any,
    inputs: dict[str, Any],
    answer: torch.Tensor,
    setting: Setting,
    chosen: list[list[list[int]]] | None = None,
) -> Any:
    """At every position of prompt and answer: logits, and what each layer returns; and `kept`."""
    model = copy.deepcopy(model).double()
    decoder = model.model.language_model
    ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
    rows, prompt = ids.shape
    steps = answer.shape[1]
    hidden = decoder.embed_tokens(torch.cat((ids, answer[:, :-1]), dim=1))
    visual = (ids == model.config.image_token_id) & mask
    features = model.model.get_image_features(
        pixel_values=inputs["pixel_values"].double(), return_dict=True
    ).pooler_output
    hidden[:, :prompt][ids == model.config.image_token_id] = torch.cat(list(features))
    total = hidden.shape[1]
    valid = torch.cat((mask, torch.ones(rows, steps - 1, dtype=torch.bool)), dim=1)
    positions = (valid.long().cumsum(1) - 1).clamp_min(0)

    order: list[list[int]] = [[] for _ in range(rows)]  # visual positions, least important first
    early: list[tuple[int, torch.Tensor]] = []
    states: list[torch.Tensor] = [hidden]
    kept: list[list[list[int]]] = [[] for _ in range(rows)]
    layers = len(decoder.layers)
    for row in range(rows):
        order[row] = torch.nonzero(visual[row]).flatten().tolist()

    # Layers 1-3 are annealed in the order that layer 3 gives: its scores are needed beforehand, and
    # prefill rows do not depend on annealing. So run the prompt alone through them first.
    first_order = _first_order(decoder, hidden[:, :prompt], visual, mask, positions[:, :prompt])

    for number, layer in enumerate(decoder.layers, start=1):
        allowed = torch.ones(total, total, dtype=torch.bool).tril()[None] & valid[:, None]
        allowed = allowed | torch.eye(total, dtype=torch.bool)
        for row in range(rows):
            everyone = torch.nonzero(visual[row]).flatten().tolist()
            cut = number > 1 and setting.keep(number) != setting.keep(number - 1)
            if cut or (number == 4 and setting.keeps is None):
                scores = early[-1][1][row]
                alive = set(order[row])
                wanted = round(round(setting.keep(number), 9) * len(everyone))
                ranked = sorted(alive, key=lambda i: float(scores[i]))
                order[row] = ranked[len(ranked) - wanted :]
            if chosen is not None:
                assert len(order[row]) == len(chosen[row][number - 1])
                order[row] = [everyone[i] for i in chosen[row][number - 1]]
            early_layer = number < 4 and setting.keeps is None
            ranking = first_order[row] if early_layer else order[row]
            kept[row].append(sorted(ranking))
            for t in range(steps):
                count = round(round(setting.keep(number), 9) * len(everyone) * setting.share(t))
                gone = sorted(set(everyone) - set(ranking[len(ranking) - count :]))
                for query in range(prompt) if t == 0 else [prompt + t - 1]:
                    seen = bool(allowed[row, query, query])
                    allowed[row, query, gone] = False
                    allowed[row, query, query] = seen  # a token sees itself
        hidden, last_row = _layer(decoder, layer, hidden, positions, allowed, prompt - 1)
        early.append((number, last_row))
        states.append(hidden)
    states[-1] = decoder.norm(hidden)  # as transformers has it
    logits = model.lm_head(decoder.norm(hidden))
    assert len(kept[0]) == layers
    return logits, states, kept


def _first_order(decoder: Any, hidden: Any, visual: Any, mask: Any, positions: Any) -> Any:
    total = hidden.shape[1]
    allowed = torch.ones(total, total, dtype=torch.bool).tril()[None] & mask[:, None]
    allowed = allowed | torch.eye(total, dtype=torch.bool)
    for layer in decoder.layers[:3]:
        hidden, last_row = _layer(decoder, layer, hidden, positions, allowed, total - 1)
    orders = []
    for row in range(len(hidden)):
        places = torch.nonzero(visual[row]).flatten().tolist()
        orders.append(sorted(places, key=lambda i: float(last_row[row, i])))
    return orders


def _layer(
    decoder: Any, layer: Any, hidden: Any, positions: Any, allowed: Any, scored: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """One decoder layer; also the head-mean attention of query `scored`, [B, total]."""
    attention = layer.self_attn
    size, config = attention.head_dim, decoder.config
    x = layer.input_layernorm(hidden)
    rows, total, _ = x.shape
    query = attention.q_proj(x).view(rows, total, -1, size).transpose(1, 2)
    key = attention.k_proj(x).view(rows, total, -1, size).transpose(1, 2)
    value = attention.v_proj(x).view(rows, total, -1, size).transpose(1, 2)
    base = config.rope_parameters["rope_theta"]
    speeds = base ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    angles = positions[:, None, :, None] * speeds

    def turn(t: torch.Tensor) -> torch.Tensor:
        a, b = t[..., : size // 2], t[..., size // 2 :]
        cos, sin = angles.cos(), angles.sin()
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)

    repeats = query.shape[1] // key.shape[1]
    query, key = turn(query), turn(key).repeat_interleave(repeats, 1)
    value = value.repeat_interleave(repeats, 1)
    logits = query @ key.transpose(2, 3) / math.sqrt(size)
    weights = logits.masked_fill(~allowed[:, None], float("-inf")).softmax(-1)
    out = (weights @ value).transpose(1, 2).reshape(rows, total, -1)
    hidden = hidden + attention.o_proj(out)
    hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return hidden, weights[:, :, scored].mean(1)
