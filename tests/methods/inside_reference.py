"""One prompt through a LLaMA by hand, layer by layer, and what each method leaves, by plain loops.

What a cut drops is taken out, the rest keeps its positions; prompt and answer run at once, in
double precision. Written without a line of the library.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

Cut = Callable[["Layer"], tuple[list[int], dict[int, torch.Tensor]]]


@dataclass
class Layer:
    """What a layer did, by place in the prompt.

    `places` are those alive; `query`, `key`: [heads, n, size], after RoPE, and `still_*` before it;
    `weights`: [heads, n, n]; `after`: [n, d], what it returned; `embedded`: [all, d].
    """

    number: int
    places: list[int]
    visual: list[int]
    text: list[int]
    query: torch.Tensor
    key: torch.Tensor
    still_query: torch.Tensor
    still_key: torch.Tensor
    weights: torch.Tensor
    after: torch.Tensor
    normed: torch.Tensor
    embedded: torch.Tensor
    everyone: list[int]
    count: int
    cut: int
    at: dict[int, int] = field(default_factory=dict)


def walk(
    model: Any, ids: torch.Tensor, features: torch.Tensor, answer: list[int],
    counts: dict[int, int], choose: Cut,
) -> tuple[torch.Tensor, list[list[int]]]:  # fmt: skip
    """Logits [T, vocabulary] of the answer, and the visual places alive in each layer.

    `counts`: layer from 1 before which something leaves -> how many stay; `choose` says which, and
    new values of some of them.
    """
    model = copy.deepcopy(model).double()
    decoder = model.model.language_model
    prompt = len(ids)
    hidden = decoder.embed_tokens(torch.cat((ids, torch.tensor(answer[:-1], dtype=torch.long))))
    everyone = (ids == model.config.image_token_id).nonzero().flatten().tolist()
    if everyone:
        hidden[everyone] = features.double()
    embedded, places = hidden, list(range(len(hidden)))
    text = list(range(max(everyone, default=-1) + 1, prompt))
    kept, last, cuts = [], None, 0
    for number, layer in enumerate(decoder.layers, 1):
        if number in counts and everyone:
            assert last is not None
            cuts += 1
            last.count, last.cut = counts[number], cuts
            stay, new = choose(last)
            for place, value in new.items():
                hidden[places.index(place)] = value
            gone = {*everyone} - {*stay}
            rows = [n for n, place in enumerate(places) if place not in gone]
            hidden, places = hidden[rows], [places[n] for n in rows]
        kept.append([place for place in places if place in {*everyone}])
        hidden, last = _layer(decoder, layer, hidden, places, prompt)
        last.number, last.embedded, last.everyone, last.text = number, embedded, everyone, text
        last.visual = kept[-1]
    return model.lm_head(decoder.norm(hidden))[-len(answer) :], kept


def _layer(decoder: Any, layer: Any, hidden: Any, places: Any, prompt: int) -> tuple[Any, Layer]:
    attention, count = layer.self_attn, len(places)
    size = attention.head_dim
    x = layer.input_layernorm(hidden)
    q, k, v = (
        project(x).view(count, -1, size).transpose(0, 1)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    speeds = decoder.config.rope_parameters["rope_theta"] ** (
        -torch.arange(0, size, 2, dtype=torch.float64) / size
    )
    angles = torch.tensor(places, dtype=torch.float64)[:, None] * speeds

    def turn(t: torch.Tensor) -> torch.Tensor:
        a, b = t[..., : size // 2], t[..., size // 2 :]
        return torch.cat(
            (a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()), -1
        )

    query, key = turn(q), turn(k)
    repeats = len(query) // len(key)
    logits = query @ key.repeat_interleave(repeats, 0).transpose(1, 2) / math.sqrt(size)
    logits = logits.masked_fill(~torch.ones(count, count, dtype=torch.bool).tril(), -math.inf)
    weights = logits.softmax(-1)
    out = (weights @ v.repeat_interleave(repeats, 0)).transpose(0, 1).reshape(count, -1)
    hidden = hidden + attention.o_proj(out)
    hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    seen = Layer(
        0, [p for p in places if p < prompt], [], [], query, key, q, k, weights, hidden,
        decoder.norm(hidden), hidden, [], 0, 0, {place: n for n, place in enumerate(places)},
    )  # fmt: skip
    return hidden, seen


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    """Of two vectors."""
    return float(a @ b / (a.norm() * b.norm()))


def dart(seen: Layer, pivots: int, text_pivots: int) -> tuple[list[int], dict[int, Any]]:
    """Pivots by size, each takes what is least like it."""
    size = {p: float(seen.key[:, seen.at[p]].abs().sum()) for p in seen.places}
    own = sorted(seen.visual, key=lambda p: -size[p])[: min(pivots, seen.count)]
    guides = own + sorted(seen.text, key=lambda p: -size[p])[:text_pivots]
    kept, wanted = [*own], seen.count - len(own)
    for number, pivot in enumerate(guides):
        quota = wanted // len(guides) + (number < wanted % len(guides))
        for _ in range(quota):
            free = [p for p in seen.visual if p not in kept]
            unlike = [cosine(seen.normed[seen.at[p]], seen.normed[seen.at[pivot]]) for p in free]
            kept.append(free[unlike.index(min(unlike))])
    return kept, {}


def still(seen: Layer) -> dict[int, float]:
    """The last prompt token's attention without positions, over visual tokens alone."""
    last, heads = seen.at[seen.places[-1]], len(seen.still_query)
    found = dict.fromkeys(seen.visual, 0.0)
    for head in range(heads):
        key = seen.still_key[head * len(seen.still_key) // heads]
        logits = [
            float(seen.still_query[head, last] @ key[seen.at[p]]) / math.sqrt(key.shape[1])
            for p in seen.visual
        ]
        top = sum(math.exp(x) for x in logits)
        for place, logit in zip(seen.visual, logits, strict=True):
            found[place] += math.exp(logit) / top / heads
    return found


def best(score: dict[int, float], count: int) -> list[int]:
    """Places of the highest scores, the first of equals."""
    return sorted(score, key=lambda p: (-score[p], p))[:count]


def feather(seen: Layer, stride: int, wide: int, size: int) -> tuple[list[int], dict[int, Any]]:
    """The grid first at the first cut; pictures are `size` tokens in lines of `wide`."""
    score = still(seen)
    grid = [
        p for n, p in enumerate(seen.everyone)
        if n % size // wide % stride == 0 and n % size % wide % stride == 0
    ]  # fmt: skip
    first = [p for p in best(score, len(score)) if p in grid] if seen.cut == 1 else []
    rest = [p for p in best(score, len(score)) if p not in first]
    return (first + rest)[: seen.count], {}


def rated(seen: Layer) -> dict[int, float]:
    """Attention from the words that have to do with the picture."""
    match = dict.fromkeys(seen.text, 0.0)
    for place in seen.everyone:
        products = [float(seen.embedded[place] @ seen.embedded[t]) for t in seen.text]
        top = max(products)
        whole = sum(math.exp(x - top) for x in products)
        for t, product in zip(seen.text, products, strict=True):
            match[t] += math.exp(product - top) / whole / len(seen.everyone)
    mean = sum(match.values()) / len(match)
    raters = [t for t in seen.text if match[t] > mean] or seen.text
    score = {}
    for place in seen.visual:
        rows = [seen.weights[:, seen.at[t], seen.at[place]].mean() for t in raters]
        score[place] = float(sum(rows) / len(rows))
    return score


def sparsevlm(seen: Layer, recycle: bool) -> tuple[list[int], dict[int, Any]]:
    """The best by raters; of what is dropped, means of clusters at their centres."""
    score = rated(seen)
    order = best(score, len(score))
    if not recycle:
        return order[: seen.count], {}
    kept = seen.count
    while True:
        dropped = len(order) - kept
        pool = int(0.3 * dropped) + 1
        clusters = int(pool / 10) + 1 if dropped else 0
        if kept + clusters <= seen.count:
            break
        kept -= 1
    clusters = seen.count - kept
    if not clusters:
        return order[:kept], {}
    members = order[kept : kept + max(clusters, min(pool, dropped))]
    values = [seen.after[seen.at[p]] for p in members]
    apart = [[float((a - b).norm()) / math.sqrt(len(a)) for b in values] for a in values]
    density = [math.exp(-sum(d * d for d in sorted(row)[:clusters]) / clusters) for row in apart]
    height = []
    for n, own in enumerate(density):
        nearer = [apart[n][m] for m, other in enumerate(density) if (other, -m) > (own, -n)]
        height.append(own * (min(nearer) if nearer else max(map(max, apart))))
    centres = sorted(range(len(members)), key=lambda n: -height[n])[:clusters]
    groups: dict[int, list[int]] = {centre: [centre] for centre in centres}
    for n in range(len(members)):
        if n not in centres:
            groups[min(centres, key=lambda c: apart[n][c])].append(n)
    new = {
        members[centre]: sum(values[n] for n in group) / len(group)
        for centre, group in groups.items()
    }
    return order[:kept] + [members[centre] for centre in centres], new


def fitprune(seen: Layer) -> tuple[list[int], dict[int, Any]]:
    """Attention from words times attention from visual tokens, the strongest head of each row."""
    score = {}
    for place in seen.visual:
        column = seen.weights[:, :, seen.at[place]].amax(0)
        words = sum(float(column[seen.at[t]]) for t in seen.text)
        among = sum(float(column[seen.at[v]]) for v in seen.visual)
        score[place] = words * among
    return best(score, seen.count), {}
