"""Prompts with pictures and videos in the form that each family's model takes.

Rows are strings: `.` padding, `t` a text token, `I` a picture, `V` a video. Where a family's
pictures differ in size, so do these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from inspect import signature
from typing import Any

import torch

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


def squares(
    tokens: int, *, wrapped: bool = False, size: int = 32, keys: Sequence[str] = ("pixel_values",)
) -> Media:
    """Pictures of so many pixels squared and always as many tokens, between marks or not."""

    def make(model: Any, rows: Sequence[str]) -> dict[str, Any]:
        one = [IMAGE] * tokens
        many = count(rows, "I")
        inputs = assemble(rows, [[START, *one, END] if wrapped else one] * many)
        return inputs | ({key: noise(many, 3, size, size) for key in keys} if many else {})

    return make


def typed(media: Media, *, key: str = "token_type_ids", kind: int = 1) -> Media:
    """The same, with the kind of every token: 0 text, `kind` picture, twice that video."""

    def make(model: Any, rows: Sequence[str]) -> dict[str, Any]:
        inputs = media(model, rows)
        ids = inputs["input_ids"]
        return inputs | {key: ((ids == IMAGE).long() + 2 * (ids == VIDEO).long()) * kind}

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


def grids(
    *, frames_apart: bool = False, video_id: int = VIDEO, depth: int = 1, together: int = 1,
    square: bool = False,
) -> Media:  # fmt: skip
    """Qwen2-VL and its kin: patches in a row, a grid for each; frames in one run or apart.

    Args:
        frames_apart, video_id: a run for each frame; of these ids.
        depth: frames that a patch is of, where the configuration says it otherwise.
        together: frames of a grid that become one.
        square: a patch is a picture, not a row of numbers.
    """

    def make(model: Any, rows: Sequence[str]) -> dict[str, Any]:
        vision, known = model.config.vision_config, signature(model.forward).parameters
        merge = getattr(vision, "spatial_merge_size", 2)
        deep, side = getattr(vision, "temporal_patch_size", depth) or 1, vision.patch_size
        size = (3, side, side) if square else (3 * deep * side**2,)
        pictures = [[(1, 8, 8), (1, 4, 12), (1, 8, 4)][n % 3] for n in range(count(rows, "I"))]
        videos = [[(3, 4, 8), (2, 4, 4)][n % 2] for n in range(count(rows, "V"))]
        videos = [(t * together, h, w) for t, h, w in videos]
        inputs: dict[str, Any] = {}
        if pictures:
            patches = sum(t * h * w for t, h, w in pictures)
            inputs |= {"pixel_values": noise(patches, *size, seed=5)}
            inputs |= {"image_grid_thw": torch.tensor(pictures)}
        if videos:
            patches = sum(t * h * w for t, h, w in videos)
            inputs |= {"pixel_values_videos": noise(patches, *size, seed=6)}
            inputs |= {"video_grid_thw": torch.tensor(videos)}
        for grid, merges in (("image", pictures), ("video", videos)):
            if merges and f"{grid}_merge_sizes" in known:
                inputs[f"{grid}_merge_sizes"] = torch.tensor([merge] * len(merges))

        def film(t: int, h: int, w: int) -> list[int]:
            t, frame = t // together, [video_id] * (h * w // merge**2)
            if not frames_apart:
                return [START, *frame * t, END]
            return [token for n in range(t) for token in (50 + n, START, *frame, END)]

        seen = [[START, *[IMAGE] * (h * w // merge**2), END] for _, h, w in pictures]
        base = assemble(rows, seen, [film(*grid) for grid in videos])
        ids = base["input_ids"]
        kinds = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
        if videos and video_id == IMAGE:  # such prompts hold videos alone here
            kinds = 2 * (ids == IMAGE).int()
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


def ernie(model: Any, rows: Sequence[str]) -> dict[str, Any]:
    """Grids, patches without a time axis, and kinds of tokens for the experts."""
    inputs = grids(together=2)(model, rows)
    size = 3 * model.config.vision_config.patch_size**2
    for kind, seed in (("image", 5), ("video", 6)):
        if f"{kind}_grid_thw" in inputs:
            key = "pixel_values" if kind == "image" else "pixel_values_videos"
            inputs[key] = noise(len(inputs[key]), size, seed=seed)
    visual = torch.isin(inputs["input_ids"], torch.tensor([IMAGE, VIDEO]))
    return inputs | {"moe_mm_token_type_ids": visual.int()}


def resampled(model: Any, rows: Sequence[str]) -> dict[str, Any]:
    """Idefics2: eight tokens a picture, rows filled up with empty ones."""
    inputs = assemble(rows, [[START, *[IMAGE] * 8, END]] * count(rows, "I"))
    pixels = torch.zeros(len(rows), max(row.count("I") for row in rows), 3, 32, 32)
    for number, row in enumerate(rows):
        pixels[number, : row.count("I")] = noise(row.count("I"), 3, 32, 32, seed=number + 1)
    return inputs | {"pixel_values": pixels}


def cut_up(model: Any, rows: Sequence[str]) -> dict[str, Any]:
    """Fuyu: pictures come as patches."""
    many = count(rows, "I")
    side = 3 * model.config.patch_size**2
    inputs = assemble(rows, [[START, *[IMAGE] * 16, END]] * many)
    return inputs | {"image_patches": noise(many, 16, side)}


def shapes(model: Any, rows: Sequence[str]) -> dict[str, Any]:
    """LFM2-VL: patches of pictures of one size, and their shapes; four become a token."""
    many = count(rows, "I")
    return assemble(rows, [[START, *[IMAGE] * 16, END]] * many) | {
        "pixel_values": noise(many, 64, 3 * model.config.vision_config.patch_size**2),
        "spatial_shapes": torch.tensor([[8, 8]] * many),
        "pixel_attention_mask": torch.ones(many, 64, dtype=torch.int32),
    }


def packed(tokens: int) -> Media:
    """MiniCPM-V: patches of all pictures in a line, and how many each has; videos are frames."""

    def make(model: Any, rows: Sequence[str]) -> dict[str, Any]:
        side = model.config.vision_config.patch_size
        many, films = count(rows, "I"), count(rows, "V")
        frame = [START, *[VIDEO] * tokens, END]
        inputs = assemble(rows, [[START, *[IMAGE] * tokens, END]] * many, [frame * 3] * films)
        for name, pictures in (("", many), ("_videos", 3 * films)):
            if pictures:
                seen = noise(1, 3, side, pictures * 64 * side, seed=1 + len(name))
                inputs[f"pixel_values{name}"] = seen
                inputs[f"target_sizes{name}"] = torch.tensor([[8, 8]] * pictures)
        return inputs

    return make


def phi4(model: Any, rows: Sequence[str]) -> dict[str, Any]:
    """One crop and the whole picture, with separators that are visual tokens, too."""
    many = count(rows, "I")
    return assemble(rows, [[IMAGE] * 13] * many) | {
        "image_pixel_values": noise(many, 2, 3, 16, 16, seed=3),
        "image_sizes": torch.tensor([[16, 16]] * many),
        "image_attention_mask": torch.ones(many, 2, 4, 4, dtype=torch.bool),
    }
