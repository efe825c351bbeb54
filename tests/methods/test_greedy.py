"""Greedy choices against loops that try everything, and what theory promises of them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from methods.references import (
    best_cover,
    by_determinants,
    cosines,
    cover,
    covering,
    determinant,
    farthest,
    mmr,
)

from st3.methods.greedy import (
    facility,
    farthest_first,
    greedy_map,
    marginal_relevance,
    ranked,
    similarities,
)
from st3.methods.view import units

SIZES = [1, 2, 7, 12]


def tokens(n: int, d: int = 5, seed: int = 0) -> torch.Tensor:
    """Random ones, some alike."""
    made = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    if n > 6:
        made[5] = 2 * made[1]  # a duplicate, by its direction
    return made


def pooled(*sets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sets of tokens, padded: similarities and which are there."""
    widest = max(map(len, sets))
    valid = torch.zeros(len(sets), widest, dtype=torch.bool)
    padded = torch.full((len(sets), widest, sets[0].shape[1]), float("nan"))
    for row, one in enumerate(sets):
        padded[row, : len(one)], valid[row, : len(one)] = one, True
    return similarities(units(padded, valid)), valid


def order_of(
    similar: torch.Tensor, quality: torch.Tensor, valid: torch.Tensor, count: int
) -> torch.Tensor:
    """What `greedy_map` orders."""
    return greedy_map(similar, quality, valid, count)[0]


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("seed", range(3))
def test_farthest_first(n: int, seed: int) -> None:
    V = tokens(n, seed=seed)
    assert farthest_first(*pooled(V), n)[0].tolist() == farthest(V, n)


@pytest.mark.parametrize("seed", range(4))
def test_farthest_first_is_half_as_far_as_can_be(seed: int) -> None:
    """Of the largest least chord sqrt(2 (1 - cos)) of any subset at least one half."""
    V = tokens(9, seed=seed)
    S = cosines(V)

    def least(subset: list[int] | tuple[int, ...]) -> float:
        return min(
            math.sqrt(max(0.0, 2 - 2 * S[i][j])) for i, j in itertools.combinations(subset, 2)
        )

    for count in (2, 3, 4):
        chosen = farthest_first(*pooled(V), count)[0].tolist()
        most = max(map(least, itertools.combinations(range(9), count)))
        assert least(chosen) >= most / 2 - 1e-6


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("seed", range(3))
def test_map_by_determinants(n: int, seed: int) -> None:
    V = tokens(n, d=16, seed=seed)
    quality = torch.rand(n, generator=torch.Generator().manual_seed(seed)) + 0.1
    chosen = order_of(*_with(quality.log(), pooled(V)), n)[0].tolist()
    rank = n if n <= 6 else n - 1  # one is another's double
    assert chosen[:rank] == by_determinants(V, quality.tolist(), n)[:rank]
    assert sorted(chosen) == list(range(n))


def _with(
    quality: torch.Tensor, pool: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return pool[0], quality[None], pool[1]


def test_map_goes_on_where_the_rank_is_used_up() -> None:
    """Three dimensions: after three, spread evenly, not a strip from the top, and no NaN."""
    V = tokens(120, d=3)
    picks, rank = greedy_map(*_with(torch.zeros(120), pooled(V)), 120)
    chosen = picks[0].tolist()
    assert rank.tolist() == [3]
    assert determinant(cosines(V), chosen[:3]) > 1e-4
    quarters = [sum(n // 30 == quarter for n in chosen[3:43]) for quarter in range(4)]
    assert max(quarters) - min(quarters) <= 3
    assert sorted(chosen) == list(range(120))


@pytest.mark.parametrize("d", [16, 128])
def test_map_stays_in_numbers_whatever_the_quality(d: int) -> None:
    """Far more tokens than rank, qualities from 0 to 1: each of them once, the rank found."""
    for seed in range(3):
        V, made = tokens(400, d=d, seed=seed), torch.Generator().manual_seed(seed)
        quality = torch.rand(400, generator=made)
        quality[7] = 0
        picks, rank = greedy_map(*_with(quality.log(), pooled(V)), 400)
        assert sorted(picks[0].tolist()) == list(range(400))
        assert d <= int(rank) <= d + 3


@pytest.mark.parametrize("reach", [9.5, 24.5, 49.5, 5e3])
def test_map_where_qualities_are_far_apart(reach: float) -> None:
    """exp(reach r), by logarithms of determinants in double precision."""
    for seed in range(3):
        made = torch.Generator().manual_seed(seed)
        V, quality = torch.randn(20, 32, generator=made), reach * torch.rand(20, generator=made)
        S = torch.tensor(cosines(V), dtype=torch.float64)
        chosen: list[int] = []
        while len(chosen) < 20:
            told = {}
            for j in {*range(20)} - {*chosen}:
                these = [*chosen, j]
                part = S[these][:, these]
                told[j] = float(part.slogdet().logabsdet + 2 * quality.double()[these].sum())
            chosen.append(max(told, key=lambda n: told[n]))
        assert order_of(*_with(quality, pooled(V)), 20)[0].tolist() == chosen


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("seed", range(3))
def test_facility_location(n: int, seed: int) -> None:
    V = tokens(n, d=4, seed=seed)
    weight = torch.rand(n, generator=torch.Generator().manual_seed(seed)) + 0.1
    similar, valid = pooled(V)
    count = min(n, 4)  # beyond, gains are rounding
    got = facility(similar, weight.log()[None], valid, count)[0].tolist()
    assert got == covering(V, weight.tolist(), 1.0, count)


@pytest.mark.parametrize("seed", range(4))
def test_facility_location_covers_nearly_as_well_as_the_best(seed: int) -> None:
    """At least 1 - 1/e of it, where all similarities are positive and weights alike."""
    V = tokens(9, seed=seed).abs()
    similar, valid = pooled(V)
    S = cosines(V)
    for count in (1, 2, 3):
        chosen = facility(similar, torch.zeros(1, 9), valid, count)[0].tolist()
        assert cover(S, chosen) >= (1 - 1 / math.e) * best_cover(S, count) - 1e-6


@pytest.mark.parametrize("trade", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("n", SIZES)
def test_marginal_relevance(n: int, trade: float) -> None:
    V = tokens(n, d=16)
    importance = torch.rand(n, generator=torch.Generator().manual_seed(4))
    similar, valid = pooled(V)
    got = marginal_relevance(similar, importance[None], valid, n, trade)[0].tolist()
    assert got == mmr(V, importance.tolist(), trade, n)


@pytest.mark.parametrize("which", ["farthest", "map", "facility", "mmr"])
def test_pools_do_not_meet_and_budgets_nest(which: str) -> None:
    """Padded beside others, of any sizes: as alone; and fewer are the first of more."""
    sets = [tokens(n, d=16, seed=n) for n in (12, 5, 8)]

    def choose(similar: torch.Tensor, valid: torch.Tensor, count: int) -> torch.Tensor:
        weight = torch.linspace(1, 2, valid.shape[1]).expand(valid.shape)
        if which == "farthest":
            return farthest_first(similar, valid, count)
        if which == "map":
            return order_of(similar, weight.log(), valid, count)
        if which == "facility":
            return facility(similar, weight.log(), valid, count)
        return marginal_relevance(similar, weight, valid, count, 0.5)

    together = choose(*pooled(*sets), 5)
    weights = torch.linspace(1, 2, 12)
    assert weights[:5].tolist() != torch.linspace(1, 2, 5).tolist()
    for row, one in enumerate(sets):
        similar, valid = pooled(one, sets[0])  # as wide, so that weights are the same
        assert together[row].tolist() == choose(similar, valid, 5)[0].tolist()
        assert choose(similar, valid, 3)[0].tolist() == together[row, :3].tolist()


def test_a_pool_smaller_than_the_count_keeps_its_order() -> None:
    """What is picked behind its end changes nothing."""
    sets = [tokens(n, d=16, seed=n) for n in (12, 2, 3)]
    similar, valid = pooled(*sets)
    quality = torch.tensor([1.0, 2.0]).repeat(3, 6)
    for row, size in ((1, 2), (2, 3)):
        alone = order_of(similar[row : row + 1], quality[:1], valid[row : row + 1], size)
        together = order_of(similar, quality, valid, 7)
        assert together[row, :size].tolist() == alone[0].tolist()
        assert together[row, 0] == 1


def test_ranked_takes_the_earlier_of_two_alike() -> None:
    score = torch.tensor([[1.0, 3.0, 3.0, 2.0, 9.0]])
    valid = torch.tensor([[True, True, True, True, False]])
    assert ranked(score, valid, 4).tolist() == [[1, 2, 3, 0]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_told(bad: float) -> None:
    """The engine refuses a pick of -1."""
    V = tokens(6)
    V[3, 0] = bad
    similar, valid = pooled(V)
    assert farthest_first(similar, valid, 3).tolist() == [[-1] * 3]
    assert order_of(similar, torch.zeros(1, 6), valid, 3).tolist() == [[-1] * 3]
    assert ranked(similar[:, 3], valid, 3).tolist() == [[-1] * 3]
