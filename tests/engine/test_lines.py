"""Which pools are grids: of pictures beside others, beside videos, and in batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import prompts, tiny_llava
from families.zoo import ZOO

import st3
from st3.engine.lines import grids_of_pools
from st3.inference.report import selection_of


def entered(model: Any, inputs: dict[str, Any], method: str, row: int = 0) -> list[list[int]]:
    """Which tokens of each picture enter."""
    with st3.trim(model, method) as session, torch.no_grad():
        model(**inputs)
        if row == 0:
            found: list[list[int]] = selection_of(session)["entered_tokens"]
            return found
        return [session.kept(1, row)]


@pytest.mark.parametrize(
    ("sizes", "lines", "grids"),
    [
        ([16], [(16, 4)], [(4, 4)]),
        ([64], [(16, 4)] * 4, [(16, 4)]),  # and not 8 x 8
        ([28, 4], [(16, 4), (12, 6), (4, 2)], [None, (2, 2)]),
        ([8, 8], [(16, 4)], [(2, 4), (2, 4)]),  # frames that text parts
        ([16], [(16, 0)], [None]),
        ([6, 10], [(16, 4)], [None, None]),  # no whole lines
    ],
)
def test_what_lies_in_lines_of_one_length_is_a_grid(
    sizes: list[int], lines: list[tuple[int, int]], grids: list[tuple[int, int] | None]
) -> None:
    assert grids_of_pools(sizes, tuple(lines)) == tuple(grids)


@pytest.mark.parametrize("method", ["downsample", "pool"])
def test_four_pictures_are_no_large_one(method: str) -> None:
    found = entered(tiny_llava(), prompts("tItItItItt"), f"{method}:keep=4,per=prompt")
    assert [len(picture) for picture in found] == [1] * 4


def test_a_picture_beside_a_video_keeps_its_grid() -> None:
    """Of 2 lines and 8 columns, alone and beside a video: no square of 4 x 4."""
    zoo = ZOO["qwen2_5_vl"]
    model = zoo.build()
    alone, beside = (zoo.inputs(model, (row,)) for row in ("ttItt", "ttItVtt"))
    for inputs in (alone, beside):
        inputs["image_grid_thw"] = torch.tensor([[1, 4, 16]])  # patches, four a token
    want = entered(model, alone, "downsample:keep=4")
    assert want == [[0, 2, 4, 6]]
    assert entered(model, beside, "downsample:keep=4")[0] == want[0]


@pytest.mark.parametrize("method", ["downsample", "pool"])
def test_a_row_beside_rows_of_several_pictures_is_as_alone(method: str) -> None:
    zoo = ZOO["qwen2_5_vl"]
    model = zoo.build()
    both = zoo.inputs(model, ("ttIItttt", "tItt"))
    here, patches = both["attention_mask"][1].bool(), both["image_grid_thw"].prod(1)
    alone = {
        key: both[key][1:, here]
        for key in ("input_ids", "attention_mask", "mm_token_type_ids")
        if key in both
    }
    alone["image_grid_thw"] = both["image_grid_thw"][2:]
    alone["pixel_values"] = both["pixel_values"][int(patches[:2].sum()) :]
    spec = f"{method}:keep=7,per=prompt"
    assert entered(model, both, spec, row=1) == entered(model, alone, spec)
