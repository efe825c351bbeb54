"""What a picture or a video becomes: visual tokens, and the operations of tower and projector.

The family's own image or video processor cuts it up, and transformers' own code encodes it on the
meta device, where operations have shapes but no numbers; torch's counter counts them.
"""

from __future__ import annotations

import inspect
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from st3.engine.pieces import as_pictures
from st3.families.meta import identity, meta_model
from st3.families.parts import find_parts
from st3.families.patches import films_of, lengths_of, marks_of
from st3.inference.image_processors import image_processor_for
from st3.inference.video_processors import video_processor_for
from st3.methods.budget import Piece
from st3.profiling.counting import Counting

STANDARD = (1344, 896)
"""Pixels of a photo, where nobody says."""
_DIFFERENT = 7
_FOUND: dict[tuple[str, str, tuple[int, int], int, int], Picture] = {}


@dataclass(frozen=True)
class Picture:
    """One picture of a size, in one model, by itself or among others of one prompt; or a video.

    Attributes:
        size: width and height in pixels.
        tokens: visual tokens.
        vision_macs, projector_macs: of encoding it.
        piece: what selectors are told of it.
    """

    size: tuple[int, int]
    tokens: int
    vision_macs: int
    projector_macs: int
    piece: Piece | None = None


def picture_of(
    config: Any, size: tuple[int, int] = STANDARD, together: int = 1, frames: int = 0
) -> Picture:
    """What a picture of this size becomes in a model of this configuration; found once.

    Args:
        together: how many such pictures the processor gets in one prompt: some make less of each.
        frames: of one video in place of the pictures.

    Raises:
        ValueError: no size of a picture, no image or video processor, or a tower that does not
            run on the meta device.
    """
    # Where it came from says which settings its image processor has.
    key = identity(config), str(config.name_or_path), size, together, frames
    if key not in _FOUND:
        count = _count_video(config, size, frames) if frames else _count(config, size, together)
        _FOUND[key] = count
    return _FOUND[key]


def picture_if_any(
    config: Any, size: tuple[int, int] = STANDARD, together: int = 1, frames: int = 0
) -> tuple[Picture | None, str]:
    """The same; or None and why it cannot be told here."""
    try:
        return picture_of(config, size, together, frames), ""
    except ValueError as error:
        return None, str(error)


def encode(
    config: Any, size: tuple[int, int], count: int, seed: int = 0, *, together: int = 1
) -> dict[str, Any]:
    """So many pictures of noise as the image processor hands them on, `together` in each prompt.

    A few are different, and take turns.

    Raises:
        ValueError: no such size, or no image processor.
    """
    width, height = size
    if min(size) < 1:
        raise ValueError(f"a picture of {width} x {height} pixels has none")
    noise = np.random.default_rng(seed)
    few = [
        Image.fromarray(noise.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for _ in range(min(count, _DIFFERENT))
    ]
    images: list[Any] = list(itertools.islice(itertools.cycle(few), count))
    if together > 1:
        images = [images[first : first + together] for first in range(0, count, together)]
    processor = image_processor_for(config)
    try:
        return dict(processor(images=images, return_tensors="pt"))
    except (TypeError, RuntimeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"the image processor takes no picture of {width} x {height} pixels: {error}"
        ) from error


def _count(config: Any, size: tuple[int, int], together: int) -> Picture:
    model = meta_model(config)
    merger: Any = find_parts(model).merger
    taken = inspect.signature(merger.get_image_features).parameters
    inputs = {
        name: value.to(model.dtype) if torch.is_floating_point(value) else value
        for name, value in encode(config, size, together, together=together).items()
        if name in taken and isinstance(value, torch.Tensor)
    }
    tower = tower_of(model)
    try:
        with torch.no_grad(), Counting(tower) as counting:
            features = merger.get_image_features(**inputs, return_dict=True)
        lengths = lengths_of(features.pooler_output)
    except (TypeError, RuntimeError, ValueError, AttributeError, IndexError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            "cannot tell how many visual tokens a picture of "
            f"{size[0]} x {size[1]} pixels makes: {reason}"
        ) from error
    found = sum(lengths), counting.inside, counting.total - counting.inside
    tokens, vision, projector = (number // together for number in found)
    marks = sum(marks_of(merger, inputs, lengths)) // together
    piece = Piece(tokens, marks, tokens if as_pictures(merger) else 0)
    return Picture(size, tokens, vision, projector, piece)


def _count_video(config: Any, size: tuple[int, int], frames: int) -> Picture:
    """Of all frames together, as the model's video path takes them, or its pictures'."""
    model = meta_model(config)
    parts = find_parts(model)
    merger: Any = parts.merger
    walk: Any = getattr(merger, "get_video_features", merger.get_image_features)
    taken = inspect.signature(walk).parameters
    width, height = size
    film = np.zeros((frames, height, width, 3), dtype=np.uint8)
    what = f"a video of {frames} frames of {width} x {height} pixels"
    behind = parts.adapter.video_ends(merger) if parts.adapter.video_ends else 0
    failure: Exception | None = None
    try:
        made = dict(
            video_processor_for(config)([film], do_sample_frames=False, return_tensors="pt")
        )
        name = max(
            (key for key, value in made.items() if torch.is_floating_point(value)),
            key=lambda key: made[key].numel(),
        )
    except (TypeError, RuntimeError, AttributeError) as error:
        raise ValueError(f"the video processor takes no {what[2:]}: {error}") from error
    pixels = made.pop(name).to(model.dtype)
    inputs = {key: value for key, value in made.items() if key in taken}
    # What families' own processors hand on: all frames of a video, or each as a picture.
    for shown in (pixels, pixels.flatten(0, 1)):
        try:
            with torch.no_grad(), Counting(tower_of(model)) as counting:
                features = walk(shown, **inputs, return_dict=True)
            lengths = lengths_of(features.pooler_output)
            tokens, inside = sum(lengths) + behind, counting.inside
            ((_, frame),) = films_of({name: shown, **inputs}, lengths) or [(0, tokens // frames)]
            piece = Piece(tokens, frame=frame)
            return Picture(size, tokens, inside, counting.total - inside, piece)
        except (TypeError, RuntimeError, ValueError, AttributeError, IndexError) as error:
            failure = failure or error
    reason = " ".join(str(failure).split())[:200]
    raise ValueError(f"cannot tell how many visual tokens {what} makes: {reason}") from failure


def tower_of(model: Any) -> Any:
    """The vision tower, by transformers' own names for it."""
    return model.get_encoder(modality="image")


def tokens_of(features: Any) -> int:
    """Visual tokens of features [n, d] or [pictures, n, d], or several of either."""
    parts = features if isinstance(features, list | tuple) else [features]
    return sum(int(part.numel() // part.shape[-1]) for part in parts)
