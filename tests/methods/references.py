"""Slow, obvious references of published choices: plain loops over one picture, in double precision.

Written from the formulas, and without a line of the library. Each takes `V` [n, d], a picture's
tokens, and returns the numbers of the chosen ones in the order in which they are chosen.
"""

from __future__ import annotations

import itertools
import math

import torch


def cosines(V: torch.Tensor) -> list[list[float]]:
    """S[i][j], cosine of tokens i and j."""
    rows = V.double().tolist()
    norms = [math.sqrt(sum(x * x for x in row)) for row in rows]
    return [
        [1.0 if a is b else sum(x * y for x, y in zip(a, b, strict=True)) / (na * nb or 1.0)
         for b, nb in zip(rows, norms, strict=True)]
        for a, na in zip(rows, norms, strict=True)
    ]  # fmt: skip


def first_best(scores: dict[int, float]) -> int:
    """The key of the largest value, the first of several."""
    return max(scores, key=lambda n: (scores[n], -n))


def farthest(V: torch.Tensor, count: int) -> list[int]:
    """DivPrune: max-min of 1 - cos, begun at the token with the farthest nearest neighbour."""
    S = cosines(V)
    n = len(S)
    alone = {j: min((1 - S[i][j] for i in range(n) if i != j), default=0.0) for j in range(n)}
    chosen = [first_best(alone)]
    while len(chosen) < count:
        left = [j for j in range(n) if j not in chosen]
        chosen.append(first_best({j: min(1 - S[i][j] for i in chosen) for j in left}))
    return chosen


def determinant(L: list[list[float]], these: list[int] | tuple[int, ...]) -> float:
    """Of the part of L that belongs to `these`."""
    part = torch.tensor([[L[i][j] for j in these] for i in these], dtype=torch.float64)
    return float(torch.linalg.det(part))


def by_determinants(V: torch.Tensor, quality: list[float], count: int) -> list[int]:
    """Greedy MAP of a DPP: each time the token with the largest determinant of all chosen."""
    S = cosines(V)
    n = len(S)
    L = [[quality[i] * S[i][j] * quality[j] for j in range(n)] for i in range(n)]
    chosen: list[int] = []
    while len(chosen) < count:
        left = [j for j in range(n) if j not in chosen]
        chosen.append(first_best({j: determinant(L, [*chosen, j]) for j in left}))
    return chosen


def relevance(V: torch.Tensor, words: torch.Tensor, theta: float) -> list[float]:
    """CDPruner without CLIP: cosine to the mean word, brought to 0..1, exponentiated."""
    mean = words.double().mean(0)
    said = [float(torch.nn.functional.cosine_similarity(v.double(), mean, dim=0)) for v in V]
    low, high = min(said), max(said)
    r = [(x - low) / (high - low) if high - low > 1e-6 else 1.0 for x in said]
    if theta == 1:
        return r
    alpha = theta / (2 * (1 - theta))
    return [math.exp(alpha * x) for x in r]


def best_cover(S: list[list[float]], count: int) -> float:
    """The best coverage of any subset, by trying all."""
    n = len(S)
    return max(cover(S, subset) for subset in itertools.combinations(range(n), count))


def cover(S: list[list[float]], subset: list[int] | tuple[int, ...]) -> float:
    """How well a subset covers all: each by the most similar chosen one, 0 at least."""
    return sum(max(0.0, *(S[i][j] for j in subset)) for i in range(len(S)))


def covering(V: torch.Tensor, saliency: list[float], alpha: float, count: int) -> list[int]:
    """SCOPE: facility location, gains times saliency to the power alpha."""
    S = cosines(V)
    n = len(S)
    chosen: list[int] = []
    while len(chosen) < count:
        gains = {}
        for j in range(n):
            if j not in chosen:
                before = [max([0.0, *(S[i][c] for c in chosen)]) for i in range(n)]
                gain = sum(max(0.0, S[i][j] - m) for i, m in enumerate(before))
                gains[j] = gain * saliency[j] ** alpha
        chosen.append(first_best(gains))
    return chosen


def mmr(V: torch.Tensor, importance: list[float], trade: float, count: int) -> list[int]:
    """Maximal marginal relevance; importance in 0..1."""
    S = cosines(V)
    chosen: list[int] = []
    while len(chosen) < count:
        left = [j for j in range(len(S)) if j not in chosen]
        chosen.append(first_best({
            j: trade * importance[j]
            - (1 - trade) * max((S[i][j] for i in chosen), default=0.0)
            if chosen else importance[j]
            for j in left
        }))  # fmt: skip
    return chosen


def best(scores: list[float], count: int) -> list[int]:
    """The largest ones, the first of two alike."""
    return sorted(range(len(scores)), key=lambda n: (-scores[n], n))[:count]


def vispruner(
    X: torch.Tensor, importance: list[float], share: float, count: int, at_once: int = 8
) -> list[int]:
    """VisPruner: the head by importance; the rest dealt into two hands, duplicates thrown away."""
    S = cosines(X)
    ranked = best(importance, len(importance))
    head = int(count * share)
    rest = ranked[head:]
    while len(rest) > count - head:
        a, b = rest[::2], rest[1::2]
        like = {i: max((S[i][j] for j in b), default=0) for i in a}
        out = min(at_once, len(rest) - (count - head), len(a))
        survivors = sorted(a, key=lambda i: (-like[i], a.index(i)))[out:]
        rest = survivors + b
    return ranked[:head] + rest


def hiprune(
    middle: list[float], deep: list[float], columns: int, alpha: float, count: int
) -> set[int]:
    """HiPrune: anchors and their four neighbours, and registers."""
    n = len(deep)
    anchors = best(middle, round(count * alpha / 5))
    chosen: list[int] = []
    near = [a + step for step in (-1, 1, -columns, columns) for a in anchors]
    for place in [*anchors, *near]:
        place = min(max(place, 0), n - 1)
        if place not in chosen:
            chosen.append(place)
    rest = [place for place in best(deep, n) if place not in chosen]
    return {*chosen, *rest[: count - len(chosen)]}


def hired(
    early: list[float], late: list[float], crop: list[int], alpha: float, count: int
) -> set[int]:
    """HiRED: budgets of tiles by marks on the whole picture, crop 0; then the best of each.

    What truncation leaves goes to the best of all that are left.
    """
    whole = [n for n, c in enumerate(crop) if c == 0]
    tiles = max(crop)
    if not tiles:
        return {*best(late, count)}
    spent = min(int(count * alpha), len(whole))
    ranked = sorted(whole, key=lambda n: (-early[n], n))
    marked = ranked[: int(len(whole) * (1 - alpha))]
    budget = {0: spent}
    for tile in range(1, tiles + 1):
        marks = sum(whole.index(n) * tiles // len(whole) + 1 == tile for n in marked)
        budget[tile] = min(marks * (count - spent) // max(1, len(marked)), len(whole))
    chosen: list[int] = []
    for tile, many in budget.items():
        inside = [n for n, c in enumerate(crop) if c == tile]
        chosen += sorted(inside, key=lambda n: (-late[n], n))[:many]
    rest = [n for n in best(late, len(late)) if n not in chosen]
    return {*chosen, *rest[: count - len(chosen)]}


def evs(V: torch.Tensor, frame: list[int], count: int) -> list[int]:
    """EVS: the most changed since the frame before; what has no such frame comes first."""
    S = cosines(V)
    frames: dict[int, list[int]] = {}
    for n, f in enumerate(frame):
        frames.setdefault(f, []).append(n)
    change = []
    for n, f in enumerate(frame):
        before = frames.get(f - 1, [])
        if len(before) == len(frames[f]):
            change.append(1 - S[n][before[frames[f].index(n)]])
        else:
            change.append(255.0)
    return best(change, count)


def lots(seed: int, n: int) -> list[float]:
    """Smaller is earlier: numbers drawn on the CPU, one a token, as scores."""
    drawn = torch.rand(n, generator=torch.Generator().manual_seed(seed))
    return [-float(x) for x in drawn]
