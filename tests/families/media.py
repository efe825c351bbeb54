"""Prompts with pictures and videos in the form that each family's model takes.

Rows are strings: `.` padding, `t` a text token, `I` a picture, `V` a video. Where a family's
pictures differ in size, so do these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from inspect import signature
from typing import Any

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

PAD, IMAGE, VIDEO, START, END = 0, 99, 98, 97, 96
Media = Callable[[Any, Sequence[str]], dict[str, Any]]


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    """Pixels or features."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assemble(
    rows: Sequence[str], pictures: Iterable[list[int]], videos: Iterable[list[int]] = ()
) -> dict[str, Any]:
    """Left-padded ids and mask; each picture and video stands for its list of ids."""
    generator = torch.Generator().manual_seed(0)
    media = {"I": iter(pictures), "V": iter(videos)}
    lines = []
    for row in rows:
        line: list[int] = []
        for kind in row:
            if kind in media:
                line += next(media[kind])
            elif kind == ".":
                line.append(PAD)
            else:
                line.append(int(torch.randint(1, 90, (), generator=generator)))
        lines.append(line)
    width = max(map(len, lines))
    ids = torch.tensor([[PAD] * (width - len(line)) + line for line in lines])
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


def count(rows: Sequence[str], kind: str) -> int:
    """How many pictures or videos there are."""
    return sum(row.count(kind) for row in rows)


def squares(tokens: int, *, wrapped: bool = False, key: str = "pixel_values") -> Media:
    """Pictures of 32 x 32 pixels and always as many tokens, between marks or not."""

    def make(model: Any, rows: Sequence[str]) -> dict[str, Any]:
        one = [IMAGE] * tokens
        many = count(rows, "I")
        inputs = assemble(rows, [[START, *one, END] if wrapped else one] * many)
        return inputs | ({key: noise(many, 3, 32, 32)} if many else {})

    return make


def typed(media: Media, *, key: str = "token_type_ids", kind: int = 1) -> Media:
    """The same, with the kind of every token: 0 text, `kind` picture."""

    def make(model: Any, rows: Sequence[str]) -> dict[str, Any]:
        inputs = media(model, rows)
        return inputs | {key: (inputs["input_ids"] == IMAGE).long() * kind}

    return make


def tiles(*, film: int = 0) -> Media:
    """LLaVA-NeXT and its kin: tiles as the aspect asks; the model itself says how many tokens.

    Three frames of a video are `film` tokens.
    """

    def make(model: Any, rows: Sequence[str]) -> dict[str, Any]:
        pictures, videos = count(rows, "I"), count(rows, "V")
        inputs: dict[str, Any] = {}
        seen = []
        if pictures:
            sizes = [[[32, 64], [64, 48], [64, 64]][n % 3] for n in range(pictures)]
            inputs["pixel_values"] = noise(pictures, 5, 3, 32, 32)
            inputs["image_sizes"] = torch.tensor(sizes)
            with torch.no_grad():
                found = model.model.get_image_features(*inputs.values(), return_dict=True)
            deep = getattr(found, "deepstack_features", None)  # as (layer, features of pictures)
            packed = deep[0][1] if deep else found.pooler_output
            seen = [[IMAGE] * len(features) for features in packed]
        if videos:
            inputs["pixel_values_videos"] = noise(videos, 3, 3, 32, 32, seed=3)
        return assemble(rows, seen, [[VIDEO] * film] * videos) | inputs

    return make


def grids(*, frames_apart: bool = False, video_id: int = VIDEO) -> Media:
    """Qwen2-VL and its kin: patches in a row, a grid for each; frames in one run or apart."""

    def make(model: Any, rows: Sequence[str]) -> dict[str, Any]:
        vision = model.config.vision_config
        merge = vision.spatial_merge_size
        depth = getattr(vision, "temporal_patch_size", 1) or 1
        size = 3 * depth * vision.patch_size**2
        pictures = [[(1, 8, 8), (1, 4, 12), (1, 8, 4)][n % 3] for n in range(count(rows, "I"))]
        videos = [[(3, 4, 8), (2, 4, 4)][n % 2] for n in range(count(rows, "V"))]
        inputs: dict[str, Any] = {}
        if pictures:
            patches = sum(t * h * w for t, h, w in pictures)
            inputs |= {"pixel_values": noise(patches, size, seed=5)}
            inputs |= {"image_grid_thw": torch.tensor(pictures)}
        if videos:
            patches = sum(t * h * w for t, h, w in videos)
            inputs |= {"pixel_values_videos": noise(patches, size, seed=6)}
            inputs |= {"video_grid_thw": torch.tensor(videos)}

        def film(t: int, h: int, w: int) -> list[int]:
            frame = [video_id] * (h * w // merge**2)
            if not frames_apart:
                return [START, *frame * t, END]
            return [token for n in range(t) for token in (50 + n, START, *frame, END)]

        seen = [[START, *[IMAGE] * (h * w // merge**2), END] for _, h, w in pictures]
        base = assemble(rows, seen, [film(*grid) for grid in videos])
        ids = base["input_ids"]
        kinds = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
        if videos and video_id == IMAGE:  # such prompts hold videos alone here
            kinds = 2 * (ids == IMAGE).int()
        known = signature(model.forward).parameters
        if "mm_token_type_ids" in known:
            inputs["mm_token_type_ids"] = kinds
        if videos and "video_second_per_grid" in known:
            inputs["video_second_per_grid"] = torch.ones(len(videos))
        return base | inputs

    return make


def three_tiles(model: Any, rows: Sequence[str]) -> dict[str, Any]:
    """Idefics3 and its kin: every picture is three tiles, rows filled up with empty ones."""
    vision = model.config.vision_config
    scale = getattr(model.config, "scale_factor", None) or vision.scale_factor
    tokens = (32 // vision.patch_size) ** 2 // scale**2
    inputs = assemble(rows, [[START, *[IMAGE] * tokens] * 3 + [END]] * count(rows, "I"))
    pixels = torch.zeros(len(rows), 3 * max(row.count("I") for row in rows), 3, 32, 32)
    for number, row in enumerate(rows):
        pixels[number, : 3 * row.count("I")] = noise(3 * row.count("I"), 3, 32, 32, seed=number + 1)
    return inputs | {"pixel_values": pixels}


def marked_tiles(model: Any, rows: Sequence[str]) -> dict[str, Any]:
    """The same, saying which are empty."""
    inputs = three_tiles(model, rows)
    return inputs | {"pixel_attention_mask": inputs["pixel_values"].flatten(2).any(-1)}


def lines(model: Any, rows: Sequence[str]) -> dict[str, Any]:
    """Pixtral: pictures of several sizes, a text token behind each line of patches."""
    sizes = [[[32, 32], [16, 32], [32, 16]][n % 3] for n in range(count(rows, "I"))]
    step = model.config.vision_config.patch_size * getattr(model.config, "spatial_merge_size", 1)
    seen = []
    for height, width in sizes:
        line = [*[IMAGE] * (width // step), START]
        seen.append([*(line * (height // step))[:-1], END])
    inputs = assemble(rows, seen)
    return inputs | {
        "pixel_values": noise(len(sizes), 3, 32, 32),
        "image_sizes": torch.tensor(sizes),
    }


def video_llava(model: Any, rows: Sequence[str]) -> dict[str, Any]:
    """Eight frames a video, each with its class token."""
    pictures, videos = count(rows, "I"), count(rows, "V")
    inputs = assemble(rows, [[IMAGE] * 16] * pictures, [[VIDEO] * (17 * 8)] * videos)
    if pictures:
        inputs["pixel_values_images"] = noise(pictures, 3, 32, 32)
    if videos:
        inputs["pixel_values_videos"] = noise(videos, 8, 3, 32, 32)
    return inputs


def encoded(model: Any, rows: Sequence[str]) -> dict[str, Any]:
    """Features in place of pixels, as `generate` hands them on: eight tokens a picture."""
    return _encoded(model, rows, tuple)


def stacked(model: Any, rows: Sequence[str]) -> dict[str, Any]:
    """The same, features of all pictures in one tensor."""
    return _encoded(model, rows, torch.Tensor.contiguous)


def _encoded(model: Any, rows: Sequence[str], form: Callable[[torch.Tensor], Any]) -> Any:
    many, tokens = count(rows, "I"), 8
    features = noise(many, tokens, model.config.get_text_config().hidden_size, seed=9)
    inputs = assemble(rows, [[START, *[IMAGE] * tokens, END]] * many)
    if "mm_encoder_outputs" in signature(model.forward).parameters:
        return inputs | {"mm_encoder_outputs": {"image": encoder_output(form(features))}}

    def pass_on(pixel_values: torch.Tensor, *_: Any, **__: Any) -> BaseModelOutputWithPooling:
        return encoder_output(form(pixel_values))

    model.model.get_image_features = pass_on  # before 5.23 there is no other way
    return inputs | {"pixel_values": features}


def only_encoded(media: Media) -> Media:
    """The same, where a model takes encoded pictures and no others are easily made."""

    def make(model: Any, rows: Sequence[str]) -> dict[str, Any]:
        if "mm_encoder_outputs" not in signature(model.forward).parameters:
            pytest.skip("this transformers takes no encoded pictures")
        return media(model, rows)

    return make


def encoder_output(features: Any) -> BaseModelOutputWithPooling:
    """What an encoder of pictures returns."""
    return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=features)


def some_pictures(inputs: dict[str, Any], these: slice) -> dict[str, Any]:
    """What `encoded` says of some of a prompt's pictures."""
    if "pixel_values" in inputs:
        return {"pixel_values": inputs["pixel_values"][these]}
    features = inputs["mm_encoder_outputs"]["image"].pooler_output[these]
    return {"mm_encoder_outputs": {"image": encoder_output(features)}}


def encoded_grids(high: int = 4, wide: int = 8) -> Media:
    """The same, with the grids from which positions are made."""

    def make(model: Any, rows: Sequence[str]) -> dict[str, Any]:
        inputs = typed(encoded, key="mm_token_type_ids")(model, rows)
        return inputs | {"image_grid_thw": torch.tensor([[1, high, wide]] * count(rows, "I"))}

    return make


def ernie(model: Any, rows: Sequence[str]) -> dict[str, Any]:
    """Grids, patches without a time axis, and kinds of tokens for the experts."""
    inputs = grids()(model, rows)
    patches = int(inputs["image_grid_thw"].prod(-1).sum())
    inputs["pixel_values"] = noise(patches, 3 * model.config.vision_config.patch_size**2, seed=5)
    return inputs | {"moe_mm_token_type_ids": (inputs["input_ids"] == IMAGE).int()}


def phi4(model: Any, rows: Sequence[str]) -> dict[str, Any]:
    """One crop and the whole picture, with separators that are visual tokens, too."""
    many = count(rows, "I")
    return assemble(rows, [[IMAGE] * 13] * many) | {
        "image_pixel_values": noise(many, 2, 3, 16, 16, seed=3),
        "image_sizes": torch.tensor([[16, 16]] * many),
        "image_attention_mask": torch.ones(many, 2, 4, 4, dtype=torch.bool),
    }
