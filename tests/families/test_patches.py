"""Which patches a visual token stands for, against the model's own path from pixels to tokens."""

from __future__ import annotations

from inspect import signature
from types import SimpleNamespace
from typing import Any

import flash
import pytest
import torch
from conftest import greedy
from families.zoo import ZOO

import st3
from st3.families.parts import find_parts
from st3.families.patches import (
    attention_of,
    blocks_of,
    feature_block,
    lengths_of,
    to_tokens,
    tower_of,
)
from st3.families.vision_path import VisionPath
from st3.methods.attention_rows import received

FAMILIES = [
    "llava", "llava_next", "llava_onevision", "internvl, qwen2", "idefics3", "gemma3", "mistral3",
    "pixtral-12b", "qwen2_5_vl", "qwen3_vl", "glm4v", "janus", "aya_vision",
]  # fmt: skip
CROPS = {"llava_next": (3, 5), "llava_onevision": (3, 5)}
"""Of each picture, those that are no filling of the batch."""


def painted(pixels: torch.Tensor, patch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A number for each patch, [crops, patches], and the pixels that carry it."""
    draw = torch.Generator().manual_seed(3)
    if pixels.dim() == 2:  # patches in a row already
        numbers = torch.rand(1, len(pixels), generator=draw)
        return numbers, numbers[0, :, None].expand(pixels.shape).clone()
    flat = pixels.flatten(0, -4)
    high, wide = flat.shape[-2] // patch, flat.shape[-1] // patch
    numbers = torch.rand(len(flat), high, wide, generator=draw)
    spread = numbers.repeat_interleave(patch, 1).repeat_interleave(patch, 2)[:, None]
    return numbers.flatten(1), spread.expand(flat.shape).reshape(pixels.shape).clone()


def tower_order(model: Any, inputs: dict[str, Any], numbers: torch.Tensor) -> torch.Tensor:
    """The numbers as the tower's blocks see its patches: found by what goes into the first one."""
    tower: Any = tower_of(find_parts(model).merger)
    if numbers.shape[0] > 1 or not hasattr(tower, "window_size"):
        return numbers
    seen: list[torch.Tensor] = []
    handles = [
        tower.patch_embed.register_forward_hook(lambda m, a, out: seen.append(out)),
        blocks_of(tower)[0].register_forward_pre_hook(lambda m, a: seen.append(a[0])),
    ]
    greedy(model, inputs, 1)
    for handle in handles:
        handle.remove()
    before, after = seen[:2]
    order = [int((before - row).abs().sum(1).argmin()) for row in after]
    assert sorted(order) == list(range(len(order)))
    return numbers[:, order]


@pytest.mark.parametrize("name", FAMILIES)
def test_means_over_patches_are_those_that_pixels_carry(name: str) -> None:
    tiny = ZOO[name]
    if not tiny.known:
        pytest.skip(f"this transformers has no {tiny.config}")
    model = tiny.build()
    inputs = tiny.inputs(model, ("ttIt" if name in ("pixtral-12b", "mistral3") else "ttIItt",))
    merger: Any = find_parts(model).merger
    patch = model.config.vision_config.patch_size
    patch = patch[0] if isinstance(patch, list | tuple) else patch
    numbers, pixels = painted(inputs["pixel_values"], patch)
    want = VisionPath(model.config).carry(inputs, [pixels])[0]
    taken = signature(merger.get_image_features).parameters
    given = {key: value for key, value in inputs.items() if key in taken}
    with torch.no_grad():
        made = merger.get_image_features(**given, return_dict=True).pooler_output
    numbers = tower_order(model, inputs, numbers)
    if name in CROPS:
        by_picture = numbers.view(2, 5, -1)
        numbers = torch.cat([rows[:n] for rows, n in zip(by_picture, CROPS[name], strict=True)])
    got = to_tokens(merger, given, numbers[..., None], lengths_of(made))[:, 0]
    assert got.shape == want.shape
    known = want.isfinite()
    assert got.isfinite().tolist() == known.tolist()
    torch.testing.assert_close(got[known], want[known].float(), atol=2e-3, rtol=0)


@pytest.mark.parametrize("first_only", [True, False])
@pytest.mark.parametrize("kind", ["none", "bool", "added"])
def test_attention_that_is_received(first_only: bool, kind: str, monkeypatch: Any) -> None:
    """A few rows at a time, of two crops, the second of which has patches that are none."""
    monkeypatch.setattr("st3.methods.attention_rows.ROWS", 100)
    torch.manual_seed(0)
    query, key = torch.randn(2, 4, 11, 8), torch.randn(2, 2, 11, 8)
    seen = torch.ones(2, 1, 11, 11, dtype=torch.bool)
    if kind != "none":
        seen[1, :, :, 8:] = False
        seen[1, :, 8:] = False
        seen[1, :, 8:, 0] = True  # nobody's softmax is empty
    want = torch.zeros(2, 11)
    for crop in range(2):
        asked = torch.zeros(11)
        for row in range(1 if first_only else 11):
            allowed = seen[crop, 0, row]
            for head in range(4):
                logits = (query[crop, head, row] * key[crop, head // 2]).sum(-1) * 0.3
                want[crop] += logits.masked_fill(~allowed, float("-inf")).softmax(-1) / 4
            asked += allowed
        want[crop] /= asked.clamp_min(1)
    mask = {"none": None, "bool": seen, "added": (~seen).float() * -1e9}[kind]
    got = received(query, key, 0.3, mask, first_only=first_only)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("name", ["paddleocr_vl", "kimi_k25"])
def test_patches_that_lie_line_by_line_until_they_are_merged(name: str) -> None:
    """Which patches a token is made of, by what the model's own code does with one that differs."""
    tiny = ZOO[name]
    if not tiny.known:
        pytest.skip(f"this transformers has no {tiny.config}")
    merger: Any = find_parts(tiny.build()).merger
    grid = torch.tensor([[1, 4, 6], [1, 2, 2]])

    def merged(states: torch.Tensor) -> torch.Tensor:
        if name == "paddleocr_vl":
            return merger.projector(states, grid)  # type: ignore[no-any-return]
        return merger.vision_tower.temporal_patch_merger(states, grid)  # type: ignore[no-any-return]

    numbers = torch.arange(28.0)
    states = torch.zeros(28, merger.config.vision_config.hidden_size)
    with torch.no_grad():
        still = merged(states)
        found = torch.zeros(len(still))
        for patch in range(28):
            moved = states.clone()
            moved[patch, ::2] = 1
            found += numbers[patch] / 4 * (merged(moved) != still).flatten(1).any(1)
    got = to_tokens(merger, {"image_grid_thw": grid}, numbers[None, :, None], [6, 1])
    assert got[:, 0].tolist() == found.tolist()


@pytest.mark.parametrize("shape", [(4, 16), (16, 4), (8, 8)])
def test_a_square_number_of_patches_is_no_square_where_lines_are_told(
    shape: tuple[int, int],
) -> None:
    """As LFM2-VL's processor tells them: by what its own code does with one patch that differs."""
    tiny = ZOO["lfm2_vl"]
    if not tiny.known:
        pytest.skip(f"this transformers has no {tiny.config}")
    merger: Any = find_parts(tiny.build()).merger
    projector, numbers = merger.multi_modal_projector, torch.arange(64.0)
    states = torch.zeros(1, *shape, merger.config.vision_config.hidden_size)
    with torch.no_grad():
        still = projector(states).flatten(0, -2)
        found = torch.zeros(len(still))
        for patch in range(64):
            moved = states.clone()
            moved[0, patch // shape[1], patch % shape[1], ::2] = 1
            found += numbers[patch] / 4 * (projector(moved).flatten(0, -2) != still).any(1)
    given = {"spatial_shapes": torch.tensor([shape])}
    assert to_tokens(merger, given, numbers[None, :, None], [16])[:, 0].tolist() == found.tolist()
    with pytest.raises(ValueError, match="cannot be told"):
        to_tokens(merger, {"spatial_shapes": torch.tensor([(4, 15)])}, numbers[None, :, None], [16])


@pytest.mark.parametrize(
    ("layers", "block"),
    [(None, 23), (-2, 22), (23, 22), ([-1, -2], 23), ((-2, -5, -8, -11, 6), 22), (0, 0)],
)
def test_what_the_projector_gets_comes_from_the_deepest_block(layers: Any, block: int) -> None:
    """Of the several that VipLLaVA joins, however they are ordered."""
    merger = SimpleNamespace(config=SimpleNamespace(vision_feature_layer=layers))
    assert feature_block(merger, 24) == block


def test_attention_received_where_a_mask_is_of_keys() -> None:
    """As FlashAttention gets it: [B, n], which patches are there."""
    torch.manual_seed(0)
    query, key = torch.randn(2, 4, 11, 8), torch.randn(2, 2, 11, 8)
    here = torch.arange(11) < torch.tensor([[11], [8]])
    for first_only in (True, False):
        got = received(query, key, 0.3, here, first_only=first_only)
        for crop, count in enumerate((11, 8)):
            logits = torch.einsum("hqd,hkd->hqk", query[crop], key[crop].repeat_interleave(2, 0))
            weights = (0.3 * logits[:, :, :count]).softmax(-1).mean(0)
            want = weights[0] if first_only else weights.mean(0)
            torch.testing.assert_close(got[crop, :count], want)
        assert not got[1, 8:].any()


@pytest.mark.parametrize(
    ("name", "row", "packed"),
    [
        ("qwen2_5_vl", "ttItItt", True), ("qwen2_5_vl", "ttVtt", True),
        ("mistral3", "ttItItt", True), ("llava", "ttItItt", False),
    ],
)  # fmt: skip
def test_pictures_that_flash_attention_gets_end_to_end_do_not_meet(
    name: str, row: str, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stays is what stays under SDPA, which towers call for a picture, or a frame, a time."""
    model = ZOO[name].build()
    inputs = ZOO[name].inputs(model, (row,))
    tower: Any = tower_of(find_parts(model).merger)
    configs = [x.config for x in tower.modules() if hasattr(x, "config")]
    calls = flash.play_towers(monkeypatch)
    kept = {}
    for backend in ("sdpa", "flash_attention_2"):
        for config in configs:
            config._attn_implementation = {"": backend}
        for method in ("fastervlm", "visionzip"):
            with st3.trim(model, method, keep=0.4) as session:
                greedy(model, inputs, 1, suppress_tokens=list(range(93, 100)))
                kept[backend, method] = session.kept(1)
    assert {*calls} == {packed}
    for method in ("fastervlm", "visionzip"):
        assert kept["sdpa", method] == kept["flash_attention_2", method]


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen2_vl"])
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_what_stays_is_what_stock_attention_says(name: str, backend: str) -> None:
    """The rows of stock's own attention weights, of one picture, by hand."""
    model = ZOO[name].build()
    inputs = ZOO[name].inputs(model, ("ttItt",))
    tower: Any = tower_of(find_parts(model).merger)
    tower.set_attn_implementation("eager")
    block = 0 if name == "llava" else 1  # hidden_states[-2] of two, or the last
    weights: list[torch.Tensor] = []
    module = attention_of(blocks_of(tower)[block])
    file = __import__("sys").modules[type(module).__module__]
    plain = file.eager_attention_forward

    def noting(asked: Any, *args: Any, **kwargs: Any) -> Any:
        out, found = plain(asked, *args, **kwargs)
        if asked is module:
            weights.append(found)
        return out, found

    file.eager_attention_forward = noting
    try:
        greedy(model, inputs, 1, suppress_tokens=list(range(93, 100)))
    finally:
        file.eager_attention_forward = plain
    mean = weights[0][0].mean(0)
    scores = mean[0, 1:] if name == "llava" else mean.mean(0)
    if name == "qwen2_vl":
        scores = scores.view(-1, 4).mean(1)
    elif name == "gemma3":
        scores = scores.view(4, 2, 4, 2).mean((1, 3)).flatten()
    tower.set_attn_implementation(backend)
    for count in (1, 5, len(scores)):
        with st3.trim(model, f"fastervlm:keep={count}") as session:
            greedy(model, inputs, 1, suppress_tokens=list(range(93, 100)))
        assert session.kept(1) == sorted(scores.argsort(descending=True)[:count].tolist())
    names = {type(x).__name__: x.config._attn_implementation for x in [module]}
    assert {*names.values()} == {backend}  # as it was
    assert "get_image_features" not in vars(find_parts(model).merger)
