"""What rows of attention say about redundancy: pure arithmetic on probabilities.

`attention` is float [layers, heads, keys] or [layers, keys], each row a probability distribution of
one query over all keys of the untrimmed sequence (0 where a key was dropped). `kinds` is int64
[keys], indices into `KINDS`, -1 for padding. A *part* is the attention to the N visual tokens
alone, [..., N], as it is or scaled to 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

KINDS = ("system", "visual", "prompt", "generated")
"""Text before the first picture, pictures, text behind it, and the answer."""
VISUAL = KINDS.index("visual")


def shares(attention: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
    """Attention to each kind of token, [..., 4]: sums to 1."""
    return torch.stack([attention[..., kinds == n].sum(-1) for n in range(len(KINDS))], dim=-1)


def visual_part(attention: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
    """Attention to the visual tokens, [..., N], in the order of the prompt."""
    return attention[..., kinds == VISUAL]


def tokens_for(part: torch.Tensor, share: float = 0.9) -> torch.Tensor:
    """The fewest visual tokens that hold `share` of the visual attention, int64 [...].

    0 where no visual token gets any.
    """
    count = (held_by_top(part) < share - 1e-6).sum(-1) + 1
    return count.masked_fill(part.sum(-1) == 0, 0)


def held_by_top(part: torch.Tensor) -> torch.Tensor:
    """Share of the visual attention that the 1, 2, ... N most attended tokens hold, [..., N]."""
    ranked = part.double().sort(dim=-1, descending=True).values.cumsum(-1)
    return ranked / ranked[..., -1:].clamp_min(torch.finfo(torch.float64).tiny)


def entropy(part: torch.Tensor) -> torch.Tensor:
    """Entropy of the visual attention over its greatest possible, log N: 0..1, [...]."""
    scaled = part.double() / part.double().sum(-1, keepdim=True).clamp_min(1e-300)
    largest = torch.log(torch.tensor(max(part.shape[-1], 2), dtype=torch.float64))
    return -(torch.xlogy(scaled, scaled)).sum(-1) / largest


def similarity(part: torch.Tensor) -> torch.Tensor:
    """Cosine similarity of the visual attention of all pairs of layers, [layers, layers]."""
    unit = torch.nn.functional.normalize(part.double(), dim=-1)
    return unit @ unit.T


def top_overlap(part: torch.Tensor, count: int) -> torch.Tensor:
    """Share of the `count` most attended visual tokens that two layers have in common, [L, L].

    A token without attention is in no layer's top; of two tops the smaller one is the whole.
    """
    chosen = torch.zeros_like(part, dtype=torch.float64)
    chosen.scatter_(-1, part.argsort(dim=-1, descending=True, stable=True)[..., :count], 1)
    chosen = chosen * (part > 0)
    size = chosen.sum(-1)
    return chosen @ chosen.T / torch.minimum(size, size[:, None]).clamp_min(1)


def held_by(part: torch.Tensor, kept: Sequence[Sequence[int]]) -> list[float]:
    """For each layer, the share of its visual attention that the tokens `kept` there hold."""
    found = []
    for row, tokens in zip(part.double(), kept, strict=True):
        found.append(float(row[list(tokens)].sum() / row.sum()) if row.sum() > 0 else 1.0)
    return found


def negligible_from(visual_shares: Sequence[float], threshold: float) -> int | None:
    """The first layer (from 1) from which on no layer pays the picture `threshold` or more.

    None where the last layer still does.
    """
    layer = len(visual_shares)
    while layer > 0 and visual_shares[layer - 1] < threshold:
        layer -= 1
    return layer + 1 if layer < len(visual_shares) else None
