"""A prompt of text and one picture for any family, as small as a picture gets.

A checkpoint's own processor makes it, else the family's image processor cuts up a picture of noise.
Where there is neither, noise takes the place of the encoded picture. Each is tried with a stock
forward; the first way that runs is taken, and what it had to pass over is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.modeling_outputs import BaseModelOutputWithPooling

from st3.families.base import picture_id, visual_mask
from st3.families.meta import FAILURES
from st3.families.parts import find_parts
from st3.inference.generation import on_model
from st3.inference.visuals import processed
from st3.profiling.picture import encode, tokens_of

ENOUGH, MANY = 16, 640
"""Visual tokens that a prompt has at least and at most, if any picture makes so few."""
TEXT = 24
OWN = "its own processor"
_QUESTION = "What is in the picture, and where?"
_SIDES = (28, 56, 112, 224, 336, 448)  # pixels
_GRID = (1, 8, 8)  # patches, of which four become a token
_FAILS = (
    *FAILURES, AssertionError, ImportError, OSError,
)  # fmt: skip
_KINDS = ("mm_token_type_ids", "token_type_ids", "moe_mm_token_type_ids")  # 0 text, 1 picture
_BEGINS = ("vision_start_token_id", "image_start_token_id", "boi_token_id", "boi_token_index")
_ENDS = ("vision_end_token_id", "image_end_token_id", "eoi_token_id", "eoi_token_index")
_ENCODED = "mm_encoder_outputs"
_ONE_KIND = "paligemma"  # whose second kind is the answer


@dataclass(frozen=True)
class Question:
    """One prompt.

    Attributes:
        inputs: for the model's forward, on its device and in its dtype.
        visual: bool [1, n], which of its tokens are visual.
        how: what made it, for a report.
        passed: what would have been truer and does not work, a sentence each.
    """

    inputs: dict[str, Any]
    visual: torch.Tensor
    how: str
    passed: tuple[str, ...] = ()

    @property
    def encoded(self) -> bool:
        """Whether it holds noise in place of the encoded picture, and so shows no tower a thing."""
        return _ENCODED in self.inputs


@dataclass(frozen=True)
class _Way:
    """One way to make prompts.

    Attributes:
        name: who makes them.
        tries: what makes them of what, the smallest picture first.
    """

    name: str
    tries: tuple[tuple[str, Callable[[], dict[str, Any]]], ...]


def question_for(model: Any, processor: Any = None, seed: int = 0) -> Question:
    """A prompt that the model takes, made in the truest way that works.

    Args:
        model: a live one that fits.
        processor: its checkpoint's, if there is one.
        seed: of noise and random text.

    Raises:
        ValueError: nothing that is known here is taken; says what was tried last.
    """
    passed: list[str] = []
    for way in _ways(model, processor, seed):
        found = _smallest(model, way)
        if isinstance(found, Question):
            return replace(found, passed=(*passed,))
        passed.append(f"{way.name} makes no prompt that this model takes: {found}")
    raise ValueError(f"no prompt with a picture could be made for this model: {passed[-1]}")


def _smallest(model: Any, way: _Way) -> Question | str:
    """The prompt whose visual tokens are nearest to what is wanted, or why there is none."""
    ids, why = find_parts(model).visual_ids, "no picture makes a visual token"
    best: Question | None = None
    for how, make in way.tries:
        try:
            inputs = {name: on_model(value, model) for name, value in make().items()}
            visual = visual_mask(ids, inputs["input_ids"])
            off = _off(visual)
            if off is None or (best is not None and off >= (_off(best.visual) or 0)):
                continue
            with torch.no_grad():
                model(**inputs)
        except _FAILS as error:
            why = f"{how}: {' '.join(str(error).split())[:200] or type(error).__name__}"
            continue
        best = Question(inputs, visual, how)
        if not off:
            break
    return best or why


def _off(visual: torch.Tensor) -> int | None:
    """How far a number of visual tokens is from what is wanted; None of none."""
    count = int(visual.sum())
    return max(ENOUGH - count, count - MANY, 0) if count else None


def special_ids(config: Any) -> list[int]:
    """Ids of tokens that stand for something else than text, by the configuration's words."""
    found: set[int] = set()
    for part in {id(part): part for part in (config, config.get_text_config())}.values():
        for name, value in part.to_dict().items():
            if name.endswith(("_token_id", "_token_index", "_token_ids")):
                values = value if isinstance(value, list) else [value]
                found |= {number for number in values if isinstance(number, int)}
    return sorted(number for number in found if number >= 0)


def _ways(model: Any, processor: Any, seed: int) -> Iterator[_Way]:
    """The truest first."""
    if processor is not None:

        def ask(side: int) -> dict[str, Any]:
            return processed(processor, [_noise(side, seed)], [_QUESTION])

        yield _of_pictures(OWN, "", ask)
    yield _of_pictures(
        "the family's image processor", ", and random text",
        lambda side: _processed(model, side, seed),
    )  # fmt: skip
    how = "noise in place of the encoded picture, and random text"
    shapes = (torch.Tensor.contiguous, tuple)
    yield _Way("noise", tuple((how, partial(_encoded, model, shape, seed)) for shape in shapes))


def _of_pictures(name: str, more: str, make: Callable[[int], dict[str, Any]]) -> _Way:
    return _Way(
        name,
        tuple(
            (f"{name}, a picture of noise, {side} x {side} pixels{more}", partial(make, side))
            for side in _SIDES
        ),
    )


def _noise(side: int, seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _processed(model: Any, side: int, seed: int) -> dict[str, Any]:
    """Inputs through the family's image processor; the model itself says how many tokens."""
    merger: Any = find_parts(model).merger
    pixels = encode(model.config, (side, side), 1, seed)
    pixels = {name: on_model(value, model) for name, value in pixels.items()}
    known = signature(merger.get_image_features).parameters
    with torch.no_grad():
        found = merger.get_image_features(
            **{name: value for name, value in pixels.items() if name in known}, return_dict=True
        )
    deep = getattr(found, "deepstack_features", None)  # of some, (layer, features of pictures)
    merged = found.pooler_output
    if deep and isinstance(deep[0], tuple) and isinstance(deep[0][0], int):
        merged = deep[0][1]
    taken = signature(model.forward).parameters
    pixels = {name: value for name, value in pixels.items() if name in taken}
    return _worded(model, tokens_of(merged), seed) | pixels


def _encoded(model: Any, shape: Any, seed: int) -> dict[str, Any]:
    """Inputs that hold noise where the tower's output would be."""
    taken = signature(model.forward).parameters
    if _ENCODED not in taken:
        raise ValueError("it takes no encoded pictures")
    generator = torch.Generator().manual_seed(seed)
    width = model.config.get_text_config().hidden_size
    features = on_model(torch.randn(1, ENOUGH, width, generator=generator), model)
    output: Any = BaseModelOutputWithPooling(last_hidden_state=features)
    output.pooler_output = shape(features)
    early = getattr(getattr(model.config, "vision_config", None), "deepstack_visual_indexes", ())
    deep = [features[0].flip(0).roll(n, 1) for n, _ in enumerate(early or ())]
    output.deepstack_features = [(layer,) for layer in deep]
    inputs = _worded(model, ENOUGH, seed) | {_ENCODED: {"image": output}}
    if "image_grid_thw" in taken:
        inputs["image_grid_thw"] = torch.tensor([_GRID])
    return inputs


def _worded(model: Any, tokens: int, seed: int) -> dict[str, Any]:
    """Random text around places for one picture of so many tokens."""
    config, taken = model.config, signature(model.forward).parameters
    text = config.get_text_config()
    visual = find_parts(model).visual_ids
    special = {*special_ids(config), *visual}
    generator = torch.Generator().manual_seed(seed)
    words: list[int] = []
    while len(words) < TEXT:
        word = int(torch.randint(1, text.vocab_size, (), generator=generator))
        words += [word] if word not in special else []
    place = picture_id(config, visual)
    marks = [
        [n for name in names if isinstance(n := getattr(config, name, None), int)][:1]
        for names in (_BEGINS, _ENDS)
    ]
    marks = [[n for n in mark if n < text.vocab_size and n not in visual] for mark in marks]
    half = TEXT // 3
    row = [*words[:half], *marks[0], *[place] * tokens, *marks[1], *words[half:]]
    ids = torch.tensor([row])
    kinds = torch.zeros_like(ids) if config.model_type == _ONE_KIND else (ids == place).long()
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return inputs | {name: kinds for name in _KINDS if name in taken}
