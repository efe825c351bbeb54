"""Near ties: the engine's word counts within a tolerance, and nowhere else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from st3.verification.choice import Choice
from st3.verification.footprint import checksum, differences, footprint

SCORES = [0.30, 0.1000, 0.1001, 0.20, 0.05]


def pick(told: list[int] | None, tolerance: float, count: int = 3) -> tuple[set[int], int]:
    choice = Choice(told=None if told is None else lambda *_: told, tolerance=tolerance)
    chosen = choice.pick(range(5), SCORES, count, lambda: told or [])
    assert [SCORES[n] for n in chosen] == sorted(SCORES[n] for n in chosen)
    return {*chosen}, choice.ties


@pytest.mark.parametrize(
    ("told", "tolerance", "want", "ties"),
    [
        (None, 0.0, {0, 2, 3}, 0),
        ([0, 1, 3], 0.0, {0, 2, 3}, 0),
        ([0, 1, 3], 1e-4, {0, 2, 3}, 0),
        ([0, 1, 3], 2e-3, {0, 1, 3}, 1),
        ([0, 2, 3], 2e-3, {0, 2, 3}, 0),
        ([1, 2, 4], 2e-3, {0, 2, 3}, 0),  # 1 and 2 alike, and there is room for one
        ([0, 3, 4], 2e-3, {0, 2, 3}, 0),
    ],
)
def test_ties(told: list[int] | None, tolerance: float, want: set[int], ties: int) -> None:
    assert pick(told, tolerance) == (want, ties)


def test_all_and_none() -> None:
    assert pick([0], 1.0, count=5) == ({0, 1, 2, 3, 4}, 0)
    assert pick([0], 1.0, count=0) == (set(), 0)


def test_equal_scores_fall_as_in_the_engine() -> None:
    """The earlier place is the more important one."""
    assert Choice().pick(range(4), [0.1] * 4, 2, list) == [1, 0]


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(2, 2), nn.Linear(2, 2)
        self.config = self.generation_config = _Config()


class _Config:
    _attn_implementation = "sdpa"

    def to_json_string(self, use_diff: bool = True) -> str:
        return self._attn_implementation

    def to_dict(self) -> dict[str, str]:
        return {}


def test_a_footprint_sees_what_changes() -> None:
    model = _Model()
    before, total = footprint(model), checksum(model)
    assert differences(before, footprint(model)) == ""
    assert checksum(model) == total
    handle = model.one.register_forward_hook(lambda *_: None)
    assert differences(before, footprint(model)) == "the hooks of one"
    handle.remove()
    model.two.forward = model.one.forward  # type: ignore[method-assign]
    assert differences(before, footprint(model)) == "the forward of two"
    del model.two.forward
    assert differences(before, footprint(model)) == ""
    with torch.no_grad():
        model.one.bias[0] += 1
    assert differences(before, footprint(model)) == "the parameter one.bias"
    assert checksum(model) != total
    model.config._attn_implementation = "eager"
    model.eval()
    assert "and 3 more" in differences(before, footprint(model))
