"""From the patches of a vision tower to visual tokens: which patches a token stands for.

Towers hand patches on in few ways: a token each; some neighbours, in a row or in a square, merged
into one; or tiles packed into one picture, which the model's own code then does with the numbers.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from math import isqrt
from typing import Any

import torch
from torch import nn

_CLASS = ("class_embedding", "cls_token", "class_token")
_QUERIES = ("latents", "query", "query_tokens")
_TOLD = ("spatial_shapes", "target_sizes")  # lines and columns of patches
MIXED = (
    "its visual tokens are made by learned queries of all patches of a picture, and which patches "
    "a token stands for cannot be told"
)


def tower_of(merger: Any) -> nn.Module | None:
    """The vision tower, by transformers' own names for it; None where there is none."""
    found = merger.get_encoder(modality="image") if hasattr(merger, "get_encoder") else None
    return None if found is merger else found


def blocks_of(tower: nn.Module) -> list[nn.Module]:
    """Its blocks, first to last: the longest list of modules that hold attention; else none."""
    lists = [
        list(module)
        for module in tower.modules()
        if isinstance(module, nn.ModuleList) and any(map(attention_of, module))
    ]
    return max(lists, key=len, default=[])


def attention_of(block: nn.Module) -> Any:
    """The module of a block that calls attention through `AttentionInterface`, None if none."""
    for module in block.modules():
        known = hasattr(sys.modules[type(module).__module__], "ALL_ATTENTION_FUNCTIONS")
        named = "attention" in type(module).__name__.lower()
        if known and named and hasattr(module, "config"):
            return module
    return None


def has_class_token(tower: nn.Module) -> bool:
    """Whether a class token stands before the patches."""
    names = {name.rpartition(".")[2] for name, _ in tower.named_parameters()}
    return bool(names & {*_CLASS})


def has_queries(merger: nn.Module) -> bool:
    """Whether learned queries make visual tokens, each of all patches: a resampler, a Q-Former."""
    names = {name.rpartition(".")[2] for name, _ in merger.named_parameters()}
    return bool(names & {*_QUERIES})


def feature_block(merger: Any, blocks: int) -> int:
    """Which block's output the projector gets, from 0; of several the deepest."""
    asked = getattr(merger.config, "vision_feature_layer", None)
    asked = -1 if asked is None else asked
    layers = asked if isinstance(asked, list | tuple) else [asked]
    return max(0, *(blocks + layer if layer < 0 else layer - 1 for layer in layers))


def named_block(merger: Any, blocks: int, layer: str) -> int:
    """The number from 0 of the block that is called `features`, `first`, `last` or a share of the
    depth, such as 0.375, which is the 9th of 24. That of `features` makes what the projector gets.
    """
    if layer == "features":
        return feature_block(merger, blocks)
    if layer in ("first", "last"):
        return 0 if layer == "first" else blocks - 1
    return min(blocks, max(1, round(float(layer) * blocks))) - 1


def whole_block(tower: Any, block: int) -> int:
    """The nearest block from there on whose attention sees a whole picture, or else the last."""
    whole = getattr(tower, "fullatt_block_indexes", None)
    if not whole or block in whole:
        return block
    found: int = min((n for n in whole if n >= block), default=max(whole))
    return found


def grids_of(merger: Any, given: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Lines and columns of tokens of each picture, where the model is told grids of patches."""
    side = getattr(merger.config.vision_config, "spatial_merge_size", 1) or 1
    found = [value for name, value in given.items() if name.endswith("grid_thw")]
    if not found or found[0] is None:
        return []
    return [(t * h // side, w // side) for t, h, w in found[0].tolist()]


def films_of(given: Mapping[str, Any], lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Of each video, its visual tokens and those of one of its frames; none where unknown.

    What is left behind the last whole frame is of none, as a mark at the end.

    Args:
        given: what `get_video_features` was given, by name.
        lengths: visual tokens of each video, or of each frame of them all.
    """
    frames = _frames(given)
    if len(lengths) == sum(frames) != len(frames):
        each = iter(lengths)
        lengths = [sum(next(each) for _ in range(count)) for count in frames]
    if len(lengths) != len(frames):
        return []
    return [(tokens, tokens // count) for tokens, count in zip(lengths, frames, strict=True)]


def _frames(given: Mapping[str, Any]) -> list[int]:
    """Frames of each video, as the model is told them."""
    for name, value in given.items():
        if value is not None and name.endswith("grid_thw"):
            return [frames for frames, _, _ in value.tolist()]
        if value is not None and name.startswith("num_frames"):
            return [int(frames) for frames in value]
    for name, value in given.items():
        if name.startswith("pixel_values") and isinstance(value, torch.Tensor) and value.dim() == 5:
            return [value.shape[1]] * value.shape[0]
    return []


def packs_tiles(merger: Any) -> bool:
    """Whether several crops of a picture become one, and not a picture each."""
    return hasattr(merger, "pack_image_features")


def marks_of(merger: Any, given: Mapping[str, Any], lengths: Sequence[int]) -> list[int]:
    """How many tokens of each picture stand for no patch, as at the end of a line.

    By the model's own packing of nothing, on the host.

    Args:
        given: what `get_image_features` was given, by name.
        lengths: visual tokens of each picture.
    """
    sizes, pack = given.get("image_sizes"), getattr(merger, "pack_image_features", None)
    none = [0] * len(lengths)
    if pack is None or sizes is None:
        return none
    crops = _crops(merger, sizes)
    if crops is None:
        return none
    vision = merger.config.vision_config
    side = vision.image_size // vision.patch_size
    nothing = torch.zeros(sum(crops), side**2, 1, device="cpu")
    try:
        found = _packed(merger, pack, nothing, crops, sizes)
    except (ValueError, RuntimeError):  # a family that packs something else than patches
        return none
    if [len(picture) for picture in found] != [*lengths]:
        return none
    return [int(picture.isinf().sum()) for picture in found]


def to_tokens(
    merger: Any, given: Mapping[str, Any], values: torch.Tensor, lengths: Sequence[int]
) -> torch.Tensor:
    """Means over the patches that each visual token stands for, float [tokens, c].

    Infinite where it stands for none, as at the end of a line.

    Args:
        merger: the module that merges pictures into text.
        given: what its `get_image_features` or `get_video_features` was given, by name.
        values: float [crops, patches, c], of a tower's patches in its order, without class tokens.
        lengths: visual tokens of each picture or video.

    Raises:
        ValueError: it cannot be told which patches a token stands for.
    """
    if has_queries(merger):
        raise ValueError(MIXED)
    crops, patches, width = values.shape
    tokens, total = sum(lengths), crops * patches
    window = _window(merger, given)
    if window is not None:  # the tower went through its groups of patches in another order
        inverse = window.to(values.device).argsort()
        values = values.reshape(len(window), -1, width)[inverse].view(crops, patches, width)
    sizes, pack = given.get("image_sizes"), getattr(merger, "pack_image_features", None)
    packed = None if pack is None or sizes is None else _crops(merger, sizes)
    if packed is not None and sum(packed) == len(values):
        found = torch.cat(_packed(merger, pack, values, packed, sizes))
        if len(found) == tokens:
            return found
    pooled = _pooled(merger, given, values, lengths)
    if pooled is not None:
        return pooled
    if total == tokens:
        return values.reshape(tokens, width)
    if tokens == total + crops:  # class tokens stay in the prompt
        rows = values.new_full((crops, 1, width), float("inf"))
        return torch.cat((rows, values), dim=1).flatten(0, 1)
    if total % tokens == 0:
        many = total // tokens
        lines = _lines(merger, given)
        if lines is not None and sum(h * w for h, w in lines[1]) == total == tokens * lines[0] ** 2:
            return _squares(values.reshape(total, width), lines[1], lines[0])
        if lines is None and any(name.endswith("grid_thw") for name in given):
            return values.reshape(tokens, many, width).mean(1)
        step, shapes = isqrt(many), _shapes(merger, given, crops, patches)
        if step * step == many and all(h % step == w % step == 0 for h, w in shapes):
            return _squares(values.reshape(total, width), shapes, step)
    raise ValueError(
        f"{total} patches of {crops} crops become {tokens} visual tokens in this family, and which "
        "patches a token stands for cannot be told"
    )


def _lines(merger: Any, given: Mapping[str, Any]) -> tuple[int, list[tuple[int, int]]] | None:
    """Where a tower goes through a picture line by line, and who merges knows its grid: of how many
    lines and columns a token is made, and those of each picture; None where processors have put
    together what will be merged.
    """
    kernels = (getattr(module, "merge_kernel_size", None) for module in merger.modules())
    kernel = next((found for found in kernels if found is not None), None)
    grid = next((value for name, value in given.items() if name.endswith("grid_thw")), None)
    if kernel is None or grid is None:
        return None
    return int(kernel[0]), [(t * h, w) for t, h, w in grid.tolist()]


def _shapes(merger: Any, given: Mapping[str, Any], crops: int, patches: int) -> list[Any]:
    """Lines and columns of patches: of each crop, or of pictures of several sizes end to end."""
    told = next((given[name] for name in _TOLD if given.get(name) is not None), None)
    if told is not None:  # of some, once more where a tower has merged two by two itself
        for step in (1, 2):
            found = [(int(h) // step, int(w) // step) for h, w in told]
            if sum(h * w for h, w in found) == crops * patches:
                return found
        return [(1, 1)]
    sizes, side = given.get("image_sizes"), isqrt(patches)
    if sizes is not None:
        one = merger.config.vision_config.patch_size
        found = [(int(h) // one, int(w) // one) for h, w in sizes]
        if sum(h * w for h, w in found) == crops * patches:
            return found
    return [(side, side)] * crops if side * side == patches else [(1, 1)]


def _squares(values: torch.Tensor, shapes: Sequence[Any], step: int) -> torch.Tensor:
    """Means over squares of `step` x `step` patches, line by line: [patches, c] -> [tokens, c]."""
    width = values.shape[1]
    pictures = torch.split(values, [h * w for h, w in shapes])
    return torch.cat([
        picture.view(h // step, step, w // step, step, width).mean((1, 3)).flatten(0, 1)
        for picture, (h, w) in zip(pictures, shapes, strict=True)
    ])  # fmt: skip


def _window(merger: Any, given: Mapping[str, Any]) -> torch.Tensor | None:
    """int64 [groups]: in which order a tower with windows goes through groups of patches."""
    tower: Any = tower_of(merger)
    grid = next((value for name, value in given.items() if name.endswith("grid_thw")), None)
    if grid is None or getattr(tower, "window_size", None) is None:
        return None
    if hasattr(tower, "get_window_index"):
        found = tower.get_window_index(grid)[0]
    else:
        make = getattr(sys.modules[type(tower).__module__], "get_vision_window_index", None)
        if make is None:
            return None
        names = ("spatial_merge_size", "window_size", "patch_size")
        found = make(grid, **{name: getattr(tower, name) for name in names})[0]
    return torch.as_tensor(found)


def _crops(merger: Any, sizes: Any) -> list[int] | None:
    """How many crops pictures of these sizes are cut into; None where that is not known."""
    count = getattr(sys.modules[type(merger).__module__], "image_size_to_num_patches", None)
    if count is None:
        return None
    config = merger.config
    return [
        count(
            image_size=size,
            grid_pinpoints=config.image_grid_pinpoints,
            patch_size=config.vision_config.image_size,
        )
        for size in sizes
    ]


def _packed(
    merger: Any, pack: Any, values: torch.Tensor, crops: Sequence[int], sizes: Any
) -> list[torch.Tensor]:
    """Tiles as the model packs them, of each picture, its marks at the ends of lines infinite."""
    marks = values.new_full((values.shape[2],), float("inf"))
    known = inspect.signature(pack).parameters
    more = {"image_newline": marks, "vision_feature_select_strategy": "full"}
    more["vision_aspect_ratio"] = getattr(merger.config, "vision_aspect_ratio", None)
    chosen = {name: value for name, value in more.items() if name in known}
    packed, _ = pack(list(torch.split(values, list(crops))), sizes, **chosen)
    return list(packed)


def _pooled(
    merger: Any, given: Mapping[str, Any], values: torch.Tensor, lengths: Sequence[int]
) -> torch.Tensor | None:
    """Frames of videos as the model pools them, a mark behind each video infinite."""
    pool = getattr(merger, "apply_pooling", None)
    if pool is None or given.get("pixel_values_videos") is None or not lengths:
        return None
    found = pool(values).reshape(len(lengths), -1, values.shape[2])
    if {*lengths} != {found.shape[1] + 1}:
        return None
    marks = values.new_full((len(lengths), 1, values.shape[2]), float("inf"))
    return torch.cat((found, marks), dim=1).flatten(0, 1)


def lengths_of(features: Any) -> list[int]:
    """Visual tokens of each picture, of features [n, d] or [pictures, n, d], or several of them."""
    return list(_lengths(features))


def _lengths(features: Any) -> Iterator[int]:
    if isinstance(features, list | tuple):
        for part in features:
            yield from _lengths(part)
    elif features.dim() == 3:
        yield from [features.shape[1]] * features.shape[0]
    else:
        yield features.shape[0]
