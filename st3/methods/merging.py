"""What methods that merge tokens compute with: who goes into whom, and by what weight.

Everything works on one pool at a time and sends no number back to the host; `padded` puts pools
together to one `Merge`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from st3.methods.merge import Merge, Part
from st3.methods.scorers import golden_spread

_APART = -2.0  # less alike than any two directions


def padded(pools: Sequence[Sequence[Part]]) -> Merge:
    """The matrix of all pools, each of some parts; where a pool has fewer numbers, weights of 0."""
    joined = [
        (
            torch.cat([part.into for part in parts]),
            torch.cat([part.of for part in parts]),
            torch.cat([part.weight for part in parts]),
        )
        for parts in pools
    ]
    into, of, weight = (
        torch.nn.utils.rnn.pad_sequence(list(column), batch_first=True)
        for column in zip(*joined, strict=True)
    )
    return Merge(into, of, weight)


def means_into(
    into: torch.Tensor, of: torch.Tensor, likeness: torch.Tensor, counts: torch.Tensor, own: int
) -> Part:
    """Each token goes into the most similar of some, the first of several, to the mean there.

    Args:
        into: int64 [a], those that take others in. `of`: int64 [b], those that may go.
        likeness: float [b, a].
        counts: bool [b], which of them do go.
        own: how many tokens count in the mean besides: 1 where the one that takes in is among them.
    """
    owner = likeness.argmax(1)
    member = counts.float()
    many = member.new_full((len(into),), own).index_add_(0, owner, member)
    return Part(into[owner], of, member / many.clamp_min(1)[owner])


@dataclass(frozen=True)
class Paired:
    """Tokens merged two by two until few are left.

    Attributes:
        left: int64 [target], in prompt order.
        owner: int64 [n], for each token the one that it is in. `weight`: float32 [n], its share.
        size: float32 [n], how many tokens a token stands for.
    """

    left: torch.Tensor
    owner: torch.Tensor
    weight: torch.Tensor
    size: torch.Tensor

    @property
    def order(self) -> torch.Tensor:
        """What is left, that which stands for most first, and equals spread over the picture."""
        key = self.size[self.left] + golden_spread(self.left)
        return self.left[key.argsort(descending=True, stable=True)]

    @property
    def part(self) -> Part:
        """The matrix: each row of it a mean."""
        return Part(self.owner, torch.arange(len(self.owner), device=self.left.device), self.weight)


def paired(
    values: torch.Tensor, target: int, *, by_size: bool, frame: torch.Tensor | None = None
) -> Paired:
    """Bipartite soft matching, round after round: every second token may go into one between them.

    Bolya et al., ICLR 2023. In a round each first one has the most similar of the second ones by
    cosine; where these pairs are most alike, the first goes into the second, up to half of all.

    Args:
        values: float [n, d].
        target: how many are to be left, at least 1.
        by_size: whether a mean counts all tokens that a token stands for, or it as one.
        frame: int64 [n]; tokens of one frame go into those of the same while there are any.
    """
    count, device = len(values), values.device
    now = values.float()
    left = owner = torch.arange(count, device=device)
    weight, size, counted = (torch.ones(count, device=device) for _ in range(3))
    remaining = count
    while remaining > target:
        gone = min(remaining // 2, remaining - target)
        first, second = left[0::2], left[1::2]
        units = torch.nn.functional.normalize(now, dim=-1)
        with torch.autocast(device.type, enabled=False):
            likeness = units[first] @ units[second].T
        if frame is not None:
            apart = frame[first][:, None] != frame[second]
            likeness = likeness.masked_fill(apart, _APART)
        best, to = likeness.max(1)
        order = best.argsort(descending=True, stable=True)
        goes, takes = first[order[:gone]], second[to[order[:gone]]]
        total = counted.index_add(0, takes, counted[goes])
        now = (now * counted[:, None]).index_add(0, takes, now[goes] * counted[goes, None])
        now = now / total[:, None]
        into = torch.arange(count, device=device).scatter(0, goes, takes)
        weight = weight * counted[owner] / total[into[owner]]
        owner = into[owner]
        size = size.index_add(0, takes, size[goes])
        if by_size:
            counted = size
        left = torch.cat((first[order[gone:]], second)).sort().values
        remaining -= gone
    return Paired(left, owner, weight, size)
