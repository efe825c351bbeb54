"""Slow, obvious references of methods for videos: plain loops over one video, in double precision.

Written from the formulas, and without a line of the library. Each takes `V` [frames, n, d] and
returns numbers of tokens through the video; those that merge, a dense matrix W [N, N] besides, with
which what stays becomes W @ V.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise, product

import torch

Vector = list[float]


def dot(a: Vector, b: Vector) -> float:
    """Of two vectors."""
    return sum(x * y for x, y in zip(a, b, strict=True))


def cosine(a: Vector, b: Vector) -> float:
    """Of two vectors."""
    return dot(a, b) / ((math.sqrt(dot(a, a)) * math.sqrt(dot(b, b))) or 1.0)


def mean(vectors: Sequence[Vector]) -> Vector:
    """Of several vectors."""
    return [sum(column) / len(vectors) for column in zip(*vectors, strict=True)]


def far(a: Vector, b: Vector) -> float:
    """Euclidean distance over the root of the width."""
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a))


def ranked(score: Callable[[int], float], these: Sequence[int]) -> list[int]:
    """By falling score, the first of two alike."""
    return sorted(these, key=lambda n: (-score(n), n))


def seats(sizes: Sequence[float], most: Sequence[int], total: int, least: int = 0) -> list[int]:
    """Webster's rule, a seat at a time: the next goes to the largest size / (2 seats + 1)."""
    found = [min(least, m) for m in most]
    while sum(found) < min(total, sum(most)):
        open_ = [k for k in range(len(sizes)) if found[k] < most[k]]
        found[max(open_, key=lambda k: (sizes[k] / (2 * found[k] + 1), -k))] += 1
    return found


def peaks(vectors: dict[int, Vector], nearest: int) -> dict[int, float]:
    """DPC-kNN: density times the distance to the nearest denser one."""
    density = {}
    for a, va in vectors.items():
        near = sorted(far(va, vb) for vb in vectors.values())[:nearest]
        density[a] = math.exp(-sum(x * x for x in near) / len(near))
    widest = max((far(a, b) for a, b in product(vectors.values(), repeat=2)), default=0.0)
    found = {}
    for a, va in vectors.items():
        above = [
            far(va, vb)
            for b, vb in vectors.items()
            if density[b] > density[a] or (density[b] == density[a] and b < a)
        ]
        found[a] = density[a] * min(above, default=widest)
    return found


def vidcom2(V: torch.Tensor, temperature: float, count: int) -> set[int]:
    """VidCom2, with frame budgets that add up."""
    frames, size, width = V.shape
    rows = V.double().flatten(0, 1).tolist()
    middle = mean(rows)
    noise = [sum((row[c] - middle[c]) ** 2 for row in rows) for c in range(width)]
    quiet = sorted(range(width), key=lambda c: (noise[c], c))[: width // 2]
    cut = [[row[c] for c in quiet] for row in rows]
    units = [[x / math.sqrt(dot(row, row)) for x in row] for row in cut]

    def kernel(a: Vector, b: Vector) -> float:
        square = sum((x - y) ** 2 for x, y in zip(a, b, strict=True))
        return sum(math.exp(-square / (2 * w)) for w in (1 / 8, 1 / 4, 1 / 2, 1, 2))

    video = mean(units)
    to_video = [kernel(unit, video) for unit in units]
    out = [-sum(to_video[f * size : (f + 1) * size]) / size for f in range(frames)]
    p = [math.exp((u - max(out)) / temperature) for u in out]
    p = [x / sum(p) for x in p]
    share = [1 + x - sum(p) / frames for x in p]
    chosen: set[int] = set()
    budgets = seats(share, [size] * frames, count, least=1)
    for f, budget in enumerate(budgets):
        own = range(f * size, (f + 1) * size)
        centre = mean([units[n] for n in own])
        near = {n: to_video[n] + kernel(units[n], centre) for n in own}
        chosen |= {*ranked(lambda n, near=near: -near[n], own)[:budget]}  # type: ignore[misc]
    return chosen


def dycoke(V: torch.Tensor, each: int) -> set[int]:
    """DyCoke's first stage, where `each` tokens stay of every frame that is not whole."""
    frames, size, _ = V.shape
    tokens = V.double().tolist()
    chosen: set[int] = set()
    for f in range(frames):
        own = range(f * size, (f + 1) * size)
        if f % 4 == 0:
            chosen |= {*own}
            continue
        before = tokens[f - 2 if f % 4 == 2 else f - 1]
        alike = [cosine(a, b) for a, b in zip(tokens[f], before, strict=True)]
        chosen |= {*ranked(lambda n, a=alike, o=own: -a[n - o[0]], own)[:each]}  # type: ignore[misc]
    return chosen


def cut_video(V: torch.Tensor, least: int, same: float) -> list[list[int]]:
    """FastVID's segments: lists of frames."""
    means = [mean(frame) for frame in V.double().tolist()]
    alike = [cosine(a, b) for a, b in pairwise(means)]
    cuts = {*sorted(range(len(alike)), key=lambda n: (alike[n], n))[: least - 1]}
    cuts |= {n for n, x in enumerate(alike) if x < same}
    found = [[0]]
    for f in range(1, len(means)):
        if f - 1 in cuts:
            found.append([])
        found[-1].append(f)
    return found


def fastvid(
    V: torch.Tensor, attention: list[float], count: int, *, least: int, same: float,
    density: float, step: int, beta: float,
) -> tuple[set[int], torch.Tensor]:  # fmt: skip
    """FastVID with an exact budget."""
    frames, size, _ = V.shape
    rows = V.double().flatten(0, 1).tolist()
    each = count // frames
    context = int(each * density + 1e-9)
    own = [range(f * size, (f + 1) * size) for f in range(frames)]
    by_attention = [ranked(lambda n: attention[n], these) for these in own]
    salient = {n for these in by_attention for n in these[: each - context]}
    chosen, W = {*salient}, torch.eye(len(rows), dtype=torch.float64)
    for segment in cut_video(V, least, same):
        anchor_frames = [f for f in segment if (segment[-1] - f) % step == 0]
        for f in anchor_frames:
            left = {n: rows[n] for n in own[f] if n not in salient}
            score = peaks(left, 4)
            many = context * len(segment) // len(anchor_frames)
            anchors = ranked(lambda n, s=score: s[n], [*left])[:many]  # type: ignore[misc]
            chosen |= {*anchors}
            members: dict[int, list[int]] = {a: [] for a in anchors}
            for n in (n for g in segment for n in own[g] if n not in salient):
                if anchors:
                    likest = {a: 2.0 if a == n else cosine(rows[a], rows[n]) for a in anchors}
                    members[max(likest, key=lambda a, x=likest: x[a])] += [n]  # type: ignore[misc]
            for a, joined in members.items():
                w = max(1 / (len(joined) + 1), beta)
                W[a] = 0
                for n in joined:
                    W[a, n] += (1 - w) / len(joined)
                W[a, a] += w
    turn = {n: (k, f) for f, these in enumerate(by_attention) for k, n in enumerate(these)}
    rest = sorted((n for n in turn if n not in chosen), key=lambda n: turn[n])
    return {*chosen, *rest[: count - len(chosen)]}, W


def windows(alike: list[list[bool]]) -> list[tuple[int, int, list[int]]]:
    """HoliTom's windows by trying all divisions: first frame, last frame, cells that stand still.

    Of equal divisions, that with the shorter last window, and so on.
    """
    steps = len(alike)
    best: tuple[tuple[int, ...], list[tuple[int, int, list[int]]]] | None = None
    for cuts in product((False, True), repeat=steps):
        edges = [0, *(n + 1 for n, cut in enumerate(cuts) if cut), steps + 1]
        found, worth = [], 0
        for first, end in pairwise(edges):
            cells = range(len(alike[0])) if alike else range(0)
            steps_inside = range(first, end - 1)
            still = [i for i in cells if steps_inside and all(alike[t][i] for t in steps_inside)]
            worth += len(still) * (end - first - 1)
            found.append((first, end - 1, still))
        key = (worth, *(first - last for first, last, _ in reversed(found)))
        if best is None or key > best[0]:
            best = key, found
    assert best is not None
    return best[1]


def holitom(
    V: torch.Tensor, attention: list[float], count: int, *, same: float, beta: float,
    contextual: float,
) -> tuple[set[int], torch.Tensor]:  # fmt: skip
    """HoliTom's outer stage with an exact budget, which must be below what is seen once."""
    frames, size, _ = V.shape
    tokens = V.double().tolist()
    alike = [
        [cosine(a, b) > same for a, b in zip(one, two, strict=True)]
        for one, two in pairwise(tokens)
    ]
    total = frames * size
    average = torch.eye(total, dtype=torch.float64)
    moving: list[list[int]] = [[*range(f * size, (f + 1) * size)] for f in range(frames)]
    still: list[list[int]] = [[] for _ in range(frames)]
    for first, last, cells in windows(alike):
        for i in cells:
            for f in range(first, last + 1):
                moving[f].remove(f * size + i)
                average[first * size + i, f * size + i] = 1 / (last - first + 1)
            still[first].append(first * size + i)
    once = (average @ V.double().flatten(0, 1)).tolist()
    groups, most = moving + still, [len(g) for g in moving + still]
    assert count <= sum(most)
    budgets = seats(most, most, count)
    chosen: set[int] = set()
    cluster = torch.eye(total, dtype=torch.float64)
    for number, (group, budget) in enumerate(zip(groups, budgets, strict=True)):
        dominant = round(budget * (1 - contextual)) if number < frames else 0
        kept = ranked(lambda n: attention[n], group)[:dominant]
        left = {n: once[n] for n in group if n not in kept}
        score = peaks(left, 7)
        centres = ranked(lambda n, s=score: s[n], [*left])[: budget - dominant]  # type: ignore[misc]
        chosen |= {*kept, *centres}
        members: dict[int, list[int]] = {c: [] for c in centres}
        for n in left if centres else ():
            members[min(centres, key=lambda c, n=n: (c != n, far(once[c], once[n]), c))] += [n]  # type: ignore[misc]
        for c, joined in members.items():
            cluster[c] = 0
            for n in joined:
                cluster[c, n] += (1 - beta) / len(joined)
            cluster[c, c] += beta
    return chosen, cluster @ average
