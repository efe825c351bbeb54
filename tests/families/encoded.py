"""Prompts with pictures already encoded: what a vision tower would say, where none runs here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

import pytest
import torch
from families.media import END, IMAGE, START, VIDEO, Media, assemble, count, noise, typed
from transformers.modeling_outputs import BaseModelOutputWithPooling


def listed(model: Any, rows: Sequence[str]) -> dict[str, Any]:
    """Features in place of pixels, as `generate` hands them on: eight tokens a picture, twelve a
    video.
    """
    return _encoded(model, rows, tuple)


def stacked(model: Any, rows: Sequence[str]) -> dict[str, Any]:
    """The same, features of all pictures in one tensor."""
    return _encoded(model, rows, torch.Tensor.contiguous)


def _encoded(model: Any, rows: Sequence[str], form: Callable[[torch.Tensor], Any]) -> Any:
    many, films = count(rows, "I"), count(rows, "V")
    width = model.config.get_text_config().hidden_size
    features, frames = noise(many, 8, width, seed=9), noise(films, 12, width, seed=10)
    inputs = assemble(
        rows, [[START, *[IMAGE] * 8, END]] * many, [[START, *[VIDEO] * 12, END]] * films
    )
    if "mm_encoder_outputs" in signature(model.forward).parameters:
        seen = {"image": features} | ({"video": frames} if films else {})
        outputs = {kind: encoder_output(form(found)) for kind, found in seen.items()}
        return inputs | {"mm_encoder_outputs": outputs}
    if films:
        pytest.skip("this transformers takes no encoded videos")

    def pass_on(pixel_values: torch.Tensor, *_: Any, **__: Any) -> BaseModelOutputWithPooling:
        return encoder_output(form(pixel_values))

    model.model.get_image_features = pass_on  # before 5.23 there is no other way
    return inputs | {"pixel_values": features}


def is_encoded(model: Any, inputs: dict[str, Any]) -> bool:
    """Whether a prompt was made here, so that no tower runs over it."""
    inside = getattr(model, "model", model)  # Llama 4 has none
    return "mm_encoder_outputs" in inputs or "get_image_features" in vars(inside)


def where_taken(media: Media) -> Media:
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
    """What a prompt says of some of its pictures: patches of all of them in a row, or encoded."""
    if "target_sizes" in inputs:
        sizes = inputs["target_sizes"]
        pixels = inputs["pixel_values"].chunk(len(sizes), -1)[these]
        return {"pixel_values": torch.cat(pixels, -1), "target_sizes": sizes[these]}
    if "image_grid_thw" in inputs and "pixel_values" in inputs:
        grids = inputs["image_grid_thw"]
        patches = inputs["pixel_values"].split(grids.prod(-1).tolist())[these]
        return {"pixel_values": torch.cat(patches), "image_grid_thw": grids[these]}
    if "pixel_values" in inputs:
        return {"pixel_values": inputs["pixel_values"][these]}
    features = inputs["mm_encoder_outputs"]["image"].pooler_output[these]
    return {"mm_encoder_outputs": {"image": encoder_output(features)}}


def with_grids(high: int, wide: int) -> Media:
    """The same, with the grids from which positions are made."""

    def make(model: Any, rows: Sequence[str]) -> dict[str, Any]:
        inputs = typed(listed, key="mm_token_type_ids")(model, rows)
        return inputs | {"image_grid_thw": torch.tensor([[1, high, wide]] * count(rows, "I"))}

    return make
