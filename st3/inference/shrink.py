"""The same model, tiny: a configuration with fewer layers and narrower ones, all else in place.

Kept is what trimming depends on: kinds of layers and their order, who lends keys to whom, windows
(narrower), how many heads share keys, positions on several axes, experts, features that enter the
decoder early. The vocabulary stays, since placeholders lie in it. Random weights fill it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

LAYERS, HEAD, WINDOW = 6, 16, 24
_MOST = {
    "hidden_size_per_layer_input": 8, "kv_lora_rank": 16, "q_lora_rank": 24, "v_head_dim": 12,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": HEAD, "linear_key_head_dim": HEAD,
    "linear_value_head_dim": HEAD, "num_experts": 8, "num_local_experts": 8, "n_routed_experts": 8,
    "moe_num_experts": 8, "num_experts_per_tok": 2, "moe_k": 2, "moe_topk": 2, "n_group": 2,
    "topk_group": 1, "moe_hidden_size": 32, "share_expert_dim": 32, "block_ff_dim": 96,
    "intermediate_size": 96, "sliding_window": WINDOW, "attention_chunk_size": WINDOW,
    "floor_scale": 8,
}  # fmt: skip
"""Sizes of a text model; what is smaller stays."""
_TOWER = {
    "intermediate_size": 64, "mlp_dim": 64, "head_dim": HEAD, "num_heads": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "projection_dim": 32,
}  # fmt: skip
_PARTS = ("vision_config", "high_res_vision_config")
_SPREAD, _SIDE = 0.8, 8  # of random weights, times the root of the width; patches
_BLOCKS = "fullatt_block_indexes"


def shrink(
    config: Any, *, narrower: bool = True, tower: bool = True, pictures: bool = True, **more: Any
) -> Any:
    """A configuration of the same family, so small that a laptop runs it in a moment.

    Args:
        config: stays as it is.
        narrower: its layers, or only fewer of them.
        tower: the vision tower, too.
        pictures: towers for fewer pixels, where they are made for a number of them.
        more: settings of the vision tower.
    """
    found = config.to_dict()
    inside = isinstance(found.get("text_config"), dict)
    text = found["text_config"] if inside else found
    width = text["hidden_size"]
    _fewer(text, found)
    if narrower:
        _narrower(text)
        _equal(text, width, text["hidden_size"])
    for name in _PARTS if inside else ():
        part = found.get(name)
        if isinstance(part, dict):
            if narrower:
                _equal(part, width, text["hidden_size"], but=("hidden_size", "embed_dim"))
            if tower:
                _smaller(part, width, text["hidden_size"] if narrower else width)
                _look_early(found, part)
                if pictures and "image_size" not in more:
                    _fewer_pixels(found, part)
            part |= {key: value for key, value in more.items() if key in part}
    if inside and narrower:
        _equal(found, width, text["hidden_size"])
    for name in ("architectures", "dtype", "torch_dtype"):
        found.pop(name, None)
    made = type(config).from_dict(found)
    made.name_or_path = config.name_or_path
    return made


def _fewer(text: dict[str, Any], whole: dict[str, Any]) -> None:
    """Layers: the first ones, until every kind is there, and some of those that borrow keys."""
    count: int = text["num_hidden_layers"]
    kinds = text.get("layer_types") or [None] * count
    borrowed = text.get("num_kv_shared_layers") or 0
    own = count - borrowed
    once = _until_all(kinds[:own])
    first = min(own, max(LAYERS, 2 * once if once > 1 else 0))  # a cut may wait for the last kind
    last = min(borrowed, max(2, _until_all(kinds[own:]))) if borrowed else 0
    kept = [*range(first), *range(own, own + last)]
    for key, value in text.items():
        if isinstance(value, list) and len(value) == count and key != "architectures":
            text[key] = [value[n] for n in kept]
    text["num_hidden_layers"] = len(kept)
    if borrowed:
        text["num_kv_shared_layers"] = last
    for key in ("max_window_layers", "first_k_dense_replace"):
        if isinstance(text.get(key), int):
            text[key] = min(text[key], len(kept) - 1)
    overrides = text.get("per_layer_config")
    if isinstance(overrides, dict):
        by_layer = {int(n): what for n, what in overrides.items()}
        text["per_layer_config"] = {
            str(new): by_layer[old] for new, old in enumerate(kept) if old in by_layer
        }
    for key in ("spatial_target_layers", "deepstack_layer_map"):  # layers of the decoder
        if isinstance(whole.get(key), list):
            whole[key] = _ranked(whole[key], len(kept))


def _until_all(kinds: Sequence[Any]) -> int:
    """How many of the first layers have every kind."""
    return 1 + max(kinds.index(kind) for kind in {*kinds})


def _ranked(layers: list[Any], count: int) -> list[Any]:
    """Numbers of layers, or pairs that end with one, close together from 1 on."""
    layers = [[*one] if isinstance(one, list | tuple) else one for one in layers]
    last = [one[-1] if isinstance(one, list) else one for one in layers]
    order = {n: min(1 + rank, count - 1) for rank, n in enumerate(sorted({*last}))}
    return [[*one[:-1], order[one[-1]]] if isinstance(one, list) else order[one] for one in layers]


def _narrower(text: dict[str, Any]) -> None:
    """Heads in the same proportion, of fewer numbers, and so all that follows from them."""
    heads = text["num_attention_heads"]
    lenders = text.get("num_key_value_heads") or heads
    share = heads // lenders
    few = min(lenders, 4 if share == 1 else 2)
    old = text.get("head_dim") or text["hidden_size"] // heads
    turned = _turned(text)
    size = min(old, round(HEAD / turned))
    if text.get("kv_lora_rank"):
        size = _MOST["qk_rope_head_dim"]
    new = {"num_attention_heads": few * share, "hidden_size": few * share * max(size, HEAD)}
    if new["hidden_size"] > text["hidden_size"]:
        return
    for key in ("num_sliding_attention_heads", "linear_num_value_heads", "linear_num_key_heads"):
        if isinstance(text.get(key), int):
            mine = text.get("linear_num_key_heads") if key.startswith("linear") else heads
            new[key] = max(1, text[key] * (2 if key.startswith("linear") else few * share) // mine)
    if text.get("num_key_value_heads"):
        new["num_key_value_heads"] = few
    if text.get("head_dim"):
        new["head_dim"] = size
    if text.get("query_pre_attn_scalar"):
        new["query_pre_attn_scalar"] = size
    for overrides in (text.get("per_layer_config") or {}).values():
        if "head_dim" in overrides:
            overrides["head_dim"] = overrides["head_dim"] * size // old
        if "num_key_value_heads" in overrides:
            overrides["num_key_value_heads"] = min(few, overrides["num_key_value_heads"])
    ropes = text.get("rope_parameters") or {}
    for rope in (ropes, *(value for value in ropes.values() if isinstance(value, dict))):
        for key, value in rope.items():
            if key.endswith("_section") and isinstance(value, list):
                rope[key] = _shares(value, sum(value) * size // old)
    for key, most in _MOST.items():
        if isinstance(text.get(key), int) and not isinstance(text[key], bool):
            text[key] = min(text[key], most)
    for key, value in text.items():
        if "intermediate_size" in key and key != "intermediate_size":
            text[key] = [32 for _ in value] if isinstance(value, list) else value and 32
    text |= new
    if "initializer_range" in text:
        text["initializer_range"] = _SPREAD / new["hidden_size"] ** 0.5


def _turned(text: dict[str, Any]) -> float:
    """The smallest share of a head that rotary positions turn."""
    ropes = text.get("rope_parameters") or {}
    inner = [value for value in ropes.values() if isinstance(value, dict)]
    found = [rope.get("partial_rotary_factor") or 1.0 for rope in (ropes, *inner)]
    return min([*found, text.get("partial_rotary_factor") or 1.0])


def _shares(parts: list[int], total: int) -> list[int]:
    """Whole numbers in about the same proportion, from 1 on, with this sum."""
    exact = [part * total / sum(parts) for part in parts]
    found = [max(1, int(share)) for share in exact]
    while sum(found) < total:
        found[max(range(len(found)), key=lambda n: exact[n] - found[n])] += 1
    return found


def _equal(part: dict[str, Any], old: int, new: int, but: Sequence[str] = ()) -> None:
    """What was as wide as the text model still is."""
    for key, value in part.items():
        if value == old and key not in but and any(x in key for x in ("hidden", "dim", "size")):
            part[key] = new


def _smaller(part: dict[str, Any], old: int, new: int) -> None:
    """A vision tower, two heads wide; layers that are looked at early stay."""
    wide = "embed_dim" if isinstance(part.get("embed_dim"), int) else "hidden_size"
    if isinstance(part.get(wide), int) and part[wide] > 4 * HEAD:
        if wide == "embed_dim" and part.get("hidden_size") == old:
            part["hidden_size"] = new
        part[wide] = 2 * HEAD
        for key, most in _TOWER.items():
            if isinstance(part.get(key), int):
                part[key] = min(part[key], most)
    if isinstance(part.get(_BLOCKS), list):
        part[_BLOCKS] = part[_BLOCKS][:2]
    depth = 2
    for key, value in part.items():
        if key.endswith("_indexes") and isinstance(value, list):
            part[key] = [2 * rank + 1 for rank, _ in enumerate(value)]
            depth = max(depth, 2 * len(value))
    for key in ("depth", "num_hidden_layers"):
        if isinstance(part.get(key), int):
            part[key] = min(part[key], depth)


def _look_early(whole: dict[str, Any], part: dict[str, Any]) -> None:
    """Layers of the tower whose output is taken, where that is not the last."""
    depth = part.get("depth") or part.get("num_hidden_layers") or 2
    for key in ("vision_feature_layer", "vision_feature_layers"):
        layers = whole.get(key)
        if isinstance(layers, list):
            whole[key] = [-1 - n % depth for n, _ in enumerate(layers)]
        elif isinstance(layers, int):
            whole[key] = max(-depth, min(layers, depth))


def _fewer_pixels(whole: dict[str, Any], part: dict[str, Any]) -> None:
    """A tower for pictures of eight patches a side, and what counts on its pictures.

    Of nine, or whatever comes next, where eight cannot be merged by so many as the family does.
    """
    old, patch = part.get("image_size"), part.get("patch_size")
    several = isinstance(old, list) and isinstance(patch, list)
    side, step = (old[0], patch[0]) if several else (old, patch)  # type: ignore[index]
    if not isinstance(side, int) or not isinstance(step, int) or side <= _SIDE * step:
        return
    merged = whole.get("scale_factor")
    merged = merged if isinstance(merged, int) else 1
    new = -(-_SIDE // merged) * merged * step
    part["image_size"] = [new] * len(old) if several else new  # type: ignore[arg-type]
    if isinstance(whole.get("image_grid_pinpoints"), list):
        points = whole["image_grid_pinpoints"]
        whole["image_grid_pinpoints"] = [[n * new // side for n in point] for point in points]
    if isinstance(whole.get("mm_tokens_per_image"), int):
        whole["mm_tokens_per_image"] = min(whole["mm_tokens_per_image"], _SIDE**2 // 4)
