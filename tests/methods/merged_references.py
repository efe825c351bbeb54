"""Slow, obvious references of published mergings: plain loops over one picture.

Written from the formulas, and without a line of the library. Each returns the numbers of the tokens
that stay, and a dense matrix as a list of rows: the new value of token i is the sum of W[i][j]
times token j. Rows of tokens that are dropped do not matter.
"""

from __future__ import annotations

import statistics

import torch
from methods.references import best, cosines

Found = tuple[list[int], list[list[float]]]


def identity(n: int) -> list[list[float]]:
    """Every token is itself."""
    return [[float(i == j) for j in range(n)] for i in range(n)]


def visionzip(
    keys: torch.Tensor, attention: list[float], share: float, count: int
) -> Found:  # fmt: skip
    """Dominant tokens, and every so-many-th of the others with the mean of what is like it."""
    n, S = len(attention), cosines(keys)
    W, contextual = identity(n), int(count * share)
    dominant = best(attention, count - contextual)
    others = [i for i in range(n) if i not in dominant]
    step = max(1, len(others) // max(1, contextual))
    targets = [others[k * step] for k in range(contextual)]
    came: dict[int, list[int]] = {target: [] for target in targets}
    for j in others:
        if targets and j not in targets:
            came[max(targets, key=lambda t: (S[j][t], -targets.index(t)))].append(j)
    for target, these in came.items():
        for j in these:
            W[target][j] += 1 / len(these)
    return dominant + targets, W


def outliers(attention: list[float]) -> int:
    """How many lie above the third quartile by 1.5 times the distance of the quartiles."""
    low, _, high = statistics.quantiles(attention, n=4, method="inclusive")
    return max(1, sum(a > high + 1.5 * (high - low) for a in attention))


def prumerge(
    keys: torch.Tensor, attention: list[float], neighbours: int, count: int | None,
    grid: bool = False,
) -> Found:  # fmt: skip
    """PruMerge, and with a grid PruMerge+; a count of None is the published rule's."""
    n, S = len(attention), cosines(keys)
    if count is None:
        many = outliers(attention)
        stays = best(attention, many)
        if grid:
            step = max(1, int(int(n / many) / 3))
            stays += [i for i in range(0, n, step) if i not in stays]
        count = min(n, len(stays) + 1)
    else:
        kept = count if count in (1, n) else count - 1
        stays = best(attention, max(1, kept // 4) if grid else kept)
        rest = [i for i in range(n) if i not in stays]
        wanted = kept - len(stays)
        stays += [rest[k * len(rest) // wanted] for k in range(wanted)]
    W = identity(n)
    for i in stays:
        near = sorted((j for j in range(n) if j != i), key=lambda j: (-S[i][j], j))[:neighbours]
        for j in near:
            W[i][j] += attention[j]
    dropped = [i for i in best(attention, n) if i not in stays]
    if len(stays) < count:
        extra = dropped[0]
        W[extra] = [attention[j] if j in dropped else 0.0 for j in range(n)]
        stays.append(extra)
    return stays, W


def paired(V: torch.Tensor, target: int, by_size: bool, frame: list[int] | None = None) -> Found:
    """Rounds of pairs: each token is a list of the ones that it is made of, with weights."""
    n = len(V)
    frame = frame or [0] * n
    made = {i: {i: 1.0} for i in range(n)}  # what a token is now
    size = dict.fromkeys(range(n), 1)
    while len(made) > target:
        left = sorted(made)
        now = {i: sum(w * V[j].double() for j, w in made[i].items()) for i in left}

        def alike(i: int, j: int, now: dict[int, torch.Tensor] = now) -> float:
            if frame[i] != frame[j]:
                return -2.0
            return float(torch.nn.functional.cosine_similarity(now[i], now[j], dim=0))

        first, second = left[::2], left[1::2]
        pairs = []
        for i in first:
            j = max(second, key=lambda j: (alike(i, j), -j))
            pairs.append((-alike(i, j), i, j))
        gone = sorted(pairs)[: min(len(left) // 2, len(left) - target)]
        for j in second:
            here = [j, *(i for _, i, to in gone if to == j)]
            weights = [size[i] if by_size else 1 for i in here]
            mean: dict[int, float] = {}
            for i, weight in zip(here, weights, strict=True):
                for part, w in made[i].items():
                    mean[part] = mean.get(part, 0.0) + w * weight / sum(weights)
            made[j] = mean
            size[j] = sum(size[i] for i in here)
        for _, i, _ in gone:
            del made[i]
    W = [[made.get(i, {}).get(j, 0.0) for j in range(n)] for i in range(n)]
    return sorted(made), W


def vscan(
    V: torch.Tensor, near: list[float], wide: list[float], grid: tuple[int, int], local: float,
    count: int, side: int = 6,
) -> Found:  # fmt: skip
    """The best of each window by one layer, the best of all by another; means of what is alike."""
    n, S, (high, columns) = len(near), cosines(V), grid
    windows: dict[tuple[int, int], list[int]] = {}
    for i in range(n):
        where = (i // columns // side, i % columns // side)
        if high == 1:
            where = (0, i // side**2)
        windows.setdefault(where, []).append(i)
    each = int(count * local) // len(windows)
    stays = [i for these in windows.values() for i in sorted(these, key=lambda i: -near[i])[:each]]
    stays += [i for i in best(wide, n) if i not in stays][: count - len(stays)]
    W = identity(n)
    came: dict[int, list[int]] = {i: [i] for i in stays}
    for j in range(n):
        if j not in stays:
            came[max(stays, key=lambda i: S[j][i])].append(j)
    for i, these in came.items():
        W[i] = [1 / len(these) if j in these else 0.0 for j in range(n)]
    return stays, W
