"""Where visual tokens lie on what the model sees: any grid, several pictures or tiles."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Patches:
    """The pictures of one prompt as the model got them, and their grid of patches.

    Attributes:
        pixels: float [pictures, height, width, 3] in 0..1, resized and cropped.
        rows, columns: patches of each picture; visual tokens run along rows, picture by picture.
    """

    pixels: Array
    rows: int
    columns: int

    @property
    def count(self) -> int:
        """Visual tokens of all pictures."""
        return len(self.pixels) * self.rows * self.columns

    @property
    def canvas(self) -> Array:
        """All pictures side by side, float [height, width, 3]."""
        return _tile(self.pixels)

    def spread(self, values: Array) -> Array:
        """One value a visual token -> one a pixel of the canvas, [height, width]."""
        _, height, width, _ = self.pixels.shape
        down = np.arange(height) * self.rows // height
        across = np.arange(width) * self.columns // width
        grids = values.reshape(len(self.pixels), self.rows, self.columns)
        return _tile(grids[:, down][:, :, across])


def patches_of(model: Any, processor: Any, pixel_values: torch.Tensor, tokens: int) -> Patches:
    """The patches behind `tokens` visual tokens.

    Args:
        pixel_values: [pictures, 3, height, width], as the processor made them.

    Raises:
        ValueError: there are not as many visual tokens as patches.
    """
    images, patch = processor.image_processor, model.config.vision_config.patch_size
    count, _, height, width = pixel_values.shape
    rows, columns = height // patch, width // patch
    if count * rows * columns != tokens:
        raise ValueError(
            f"{tokens} visual tokens are not the {count} x {rows} x {columns} patches of the "
            "picture: this model's cannot be drawn"
        )
    mean, std = np.array(images.image_mean), np.array(images.image_std)
    pixels = np.moveaxis(pixel_values.float().cpu().numpy(), 1, -1) * std + mean
    return Patches(pixels.clip(0, 1), rows, columns)


def _tile(pictures: Array) -> Array:
    """Pictures [count, height, width, ...] in as square a sheet as can be, empty places white."""
    columns = math.ceil(math.sqrt(len(pictures)))
    missing = -len(pictures) % columns
    blank = np.ones((missing, *pictures.shape[1:]), dtype=pictures.dtype)
    sheet = np.concatenate((pictures, blank))
    lines = [
        np.concatenate(list(sheet[n : n + columns]), axis=1) for n in range(0, len(sheet), columns)
    ]
    return np.concatenate(lines)
