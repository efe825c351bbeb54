"""What is left over, recycled: clusters of tokens merged into their centres."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from st3.methods.clusters import density_peaks, distances
from st3.methods.merge import Merge, Part
from st3.methods.merging import padded


def clustered(tokens: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Centres int64 [c] of c = `count` clusters, and the number of each token's cluster, int64 [m].

    The highest peaks of density are centres (`st3.methods.clusters`), others join the nearest one;
    of a density's nearest there are `count`.

    Args:
        tokens: float32 [m, d], m at least `count`.
        count: of clusters.
    """
    far = distances(tokens[None])
    everyone = torch.ones(1, len(tokens), dtype=torch.bool, device=tokens.device)
    peak = density_peaks(far, everyone, count)[0]
    centres = peak.argsort(descending=True, stable=True)[:count]
    cluster = far[0][:, centres].argmin(1)
    cluster = cluster.scatter(0, centres, torch.arange(count, device=tokens.device))
    return centres, cluster


def recycled(
    states: torch.Tensor,
    score: torch.Tensor,
    visual: torch.Tensor,
    parts: Sequence[tuple[int, int, int]],
) -> tuple[torch.Tensor, Merge]:
    """A score under which kept tokens come first, then centres; and clusters merged into these.

    Args:
        states: float32 [B, n, d]. `score`: float32 [B, n], in 0..1. `visual`: bool [B, n].
        parts: of each row, how many are kept, how many clusters the next best make, and of how many
            tokens.
    """
    standing = score.masked_fill(~visual, float("-inf")).argsort(
        dim=1, descending=True, stable=True
    )
    score, rows = score.clone(), []
    nothing = Part(standing[0, :0], standing[0, :0], score[0, :0])
    for row, (kept, clusters, members) in enumerate(parts):
        score[row, standing[row, :kept]] += 2
        rows.append([nothing])
        if not clusters:
            continue
        pool = standing[row, kept : kept + members]
        centres, cluster = clustered(states[row, pool], clusters)
        score[row, pool[centres]] += 1
        size = torch.zeros(clusters, device=score.device).index_add_(
            0, cluster, torch.ones_like(cluster, dtype=torch.float32)
        )
        rows[-1].append(Part(pool[centres][cluster], pool, 1 / size[cluster]))
    return score, padded(rows)
