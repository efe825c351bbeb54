"""Where tokens lie, against the model itself: what changes when a quarter of the picture does."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import slow
from families.checkpoints import CHECKPOINTS, save_checkpoint
from PIL import Image

import st3
from st3.families.parts import find_parts
from st3.inference.generation import find_places, prepare
from st3.inference.locate import locate
from st3.inference.places import NOWHERE, Places, places_from

SIZES = [(300, 200), *slow(((130, 310),))]
QUARTERS = [(x, y) for y in (0, 1) for x in (0, 1)]
PROMPT = "what do you see"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@lru_cache(maxsize=1)
def _loaded(name: str, folder: Path) -> tuple[Any, Any]:
    """Its tower's attention adds nothing, so that a token knows its own pixels alone."""
    model, processor = _checkpoint(name, folder)
    tower: Any = model.get_encoder(modality="image")
    for module in tower.modules():
        if "Attention" in type(module).__name__:
            module.register_forward_hook(_nothing)
    return model, processor


def _nothing(module: Any, args: Any, out: Any) -> Any:
    return (out[0] * 0, *out[1:]) if isinstance(out, tuple) else out * 0


def _features(model: Any, processor: Any, picture: Image.Image) -> tuple[torch.Tensor, int]:
    inputs = prepare(model, processor, picture, PROMPT)
    parts: Any = find_parts(model)
    ids = inputs.pop("input_ids")
    taken = ("pixel_values", "image_sizes", "image_grid_thw", "pixel_attention_mask")
    with torch.no_grad():
        found = parts.merger.get_image_features(
            **{key: inputs[key] for key in taken if key in inputs}, return_dict=True
        ).pooler_output
    several = found if isinstance(found, list | tuple) else [found]
    return torch.cat([part.flatten(0, -2) for part in several]), int(
        sum((ids == number).sum() for number in parts.visual_ids)
    )


def _noise(size: tuple[int, int], seed: int) -> np.ndarray[Any, Any]:
    # Coarse, since large pictures are made small.
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize(size, Image.Resampling.BILINEAR))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_quarter_is_its_tokens(name: str, size: tuple[int, int], folder: Path) -> None:
    model, processor = _loaded(name, folder)
    before = _noise(size, 0)
    plain, tokens = _features(model, processor, Image.fromarray(before))
    assert len(plain) == tokens
    places = find_places(model, processor, Image.fromarray(before), PROMPT)
    assert places.count == tokens
    placed = 0
    for right, below in QUARTERS:
        width, height = size
        area = np.s_[
            below * height // 2 : (below + 1) * height // 2,
            right * width // 2 : (right + 1) * width // 2,
        ]
        after = before.copy()
        after[area] = 255 - after[area]
        moved, _ = _features(model, processor, Image.fromarray(after))
        changed = ((moved - plain).abs().max(1).values > 1e-5 * plain.abs().max()).numpy()
        inside, outside = _tokens(places, right, below)
        assert changed[inside].mean() > 0.99  # noise may be its own opposite
        assert not changed[outside].any()
        assert not changed[[*places.nowhere]].any()
        placed += len(inside)
    assert placed > 0.6 * (tokens - len(places.nowhere))


def _tokens(places: Places, right: int, below: int) -> tuple[list[int], list[int]]:
    """Those well inside of a quarter, and those well outside."""
    whole: dict[int, list[tuple[Any, Any]]] = {}
    for view in places.views:
        height, width = view.owner.shape
        for token in np.unique(view.owner[view.owner != NOWHERE]):
            rows, columns = np.nonzero(view.owner == token)
            x = np.array([columns.min() / width, (columns.max() + 1) / width])
            y = np.array([rows.min() / height, (rows.max() + 1) / height])
            whole.setdefault(int(token), []).append((x, y))
    slack = 0.03  # resizing looks at neighbours
    inside, outside = [], []
    for token, boxes in whole.items():
        (x, y), *more = boxes
        assert not more
        x, y = 1 - x[::-1] if right else x, 1 - y[::-1] if below else y
        if x[1] < 0.5 - slack and y[1] < 0.5 - slack:
            inside.append(token)
        elif x[0] > 0.5 + slack or y[0] > 0.5 + slack:
            outside.append(token)
    return inside, outside


def _checkpoint(name: str, folder: Path) -> tuple[Any, Any]:
    place = folder / name
    if not place.exists():
        save_checkpoint(name, place)
    return st3.load(str(place), device="cpu")


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava_next"])
def test_several_pictures(name: str, folder: Path) -> None:
    """Each has its own tokens, and in its own sheet those that it has alone."""
    model, processor = _checkpoint(name, folder)
    pictures = [Image.fromarray(_noise(size, 0)) for size in ((300, 200), (130, 310), (90, 90))]

    def process(images: Any) -> dict[str, Any]:
        return dict(processor.image_processor(images=list(images), return_tensors="pt"))

    def alone(picture: Image.Image) -> int:
        return _features(model, processor, picture)[1]

    counts = [alone(picture) for picture in pictures]
    places = locate(model.config, process, pictures, sum(counts))
    first = 0
    for number, (picture, count) in enumerate(zip(pictures, counts, strict=True)):
        views = [view for view in places.views if view.picture == number]
        one = locate(model.config, process, [picture], count)
        assert len(views) == len(one.views)
        for view, same in zip(views, one.views, strict=True):
            shifted = np.where(same.owner == NOWHERE, NOWHERE, same.owner + first)
            assert np.array_equal(view.owner, shifted)
        first += count


def test_tiles_and_lines_by_hand() -> None:
    """Two tiles beside each other, 2 x 3 tokens each, then the whole in 1 x 2, then no place."""
    x, y = [], []
    for tile in (0, 1):
        for line in (0, 1):
            x += [tile / 2 + (column + 0.5) / 6 for column in range(3)]
            y += [line / 2 + 0.25] * 3
    x, y = [*x, 0.25, 0.75, np.nan], [*y, 0.5, 0.5, np.nan]
    image = Image.new("RGB", (480, 240), "red")
    places = places_from([image], np.zeros(15, dtype=int), np.array(x), np.array(y))
    assert places.nowhere == (14,)
    tiles, whole = places.views
    want = np.array([[0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11]])
    assert np.array_equal(tiles.owner, want.repeat(120, 0).repeat(80, 1))
    assert np.array_equal(whole.owner, np.array([[12, 13]]).repeat(240, 0).repeat(240, 1))
    assert places.canvas.shape == (486, 480, 3)  # one above the other
    values = np.arange(15.0)
    spread = places.spread(values, np.nan)
    assert np.array_equal(spread[:240], tiles.owner)
    assert np.isnan(spread[240:246]).all()


@pytest.mark.parametrize("size", [(3, 700), (700, 3), (2, 300), (40, 40)], ids=str)
def test_a_narrow_picture_is_one_grid(size: tuple[int, int], folder: Path) -> None:
    """Of which the processor makes a square: 16 x 16 tokens of the same size."""
    model, processor = _checkpoint("gemma3", folder)
    picture = Image.fromarray(_noise(size, 0))
    (view,) = find_places(model, processor, picture, PROMPT).views
    height, width = view.owner.shape
    lines, columns = ((np.arange(side) + 0.5) * 16 // side for side in (height, width))
    want = lines[:, None] * 16 + columns[None]
    assert (view.owner == want).mean() > 0.9
    across = np.abs(view.owner % 16 - want % 16).max()
    down = np.abs(view.owner // 16 - want // 16).max()
    assert max(across, down) <= 1


@pytest.mark.parametrize(
    ("name", "size", "tokens"),
    [
        ("internvl", (64, 40), [6 * 256, 256]), ("llava_next", (64, 40), [576, 48 * 19]),
        ("gemma3", (24, 18), [256]), ("qwen2_5_vl", (3, 2), [6]), ("smolvlm", (80, 60), [729, 81]),
    ],
)  # fmt: skip
def test_a_small_picture_is_seen_as_a_large_one(
    name: str, size: tuple[int, int], tokens: list[int], folder: Path
) -> None:
    """However far it is blown up: tiles, then the whole, or the other way round."""
    model, processor = _checkpoint(name, folder)
    places = find_places(model, processor, Image.fromarray(_noise(size, 0)), PROMPT)
    assert [view.tokens for view in places.views] == tokens


def test_other_counts_are_refused(folder: Path) -> None:
    model, processor = _checkpoint("qwen2_5_vl", folder)

    def process(images: Any) -> dict[str, Any]:
        return dict(processor.image_processor(images=list(images), return_tensors="pt"))

    with pytest.raises(ValueError, match="7 visual tokens, its pictures make 9"):
        locate(model.config, process, [Image.fromarray(_noise((90, 90), 0))], 7)
    with pytest.raises(ValueError, match="1 x 5 pixels is too small to draw tokens on"):
        find_places(model, processor, Image.new("RGB", (1, 5)), PROMPT)
