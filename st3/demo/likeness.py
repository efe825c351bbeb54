"""Whether a picture is of the demo model's world, so that it may say when it is shown another.

A check of colours alone: what is not the ground's colour must be one of the world's tones. Pictures
that pass may still show things that the model does not know; those that fail are none of its world.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from st3.demo.scenes import COLOURS

_SIDE = 48  # pixels to look at: noise and fine texture average out
_NEAR = 50.0  # of 255, in the worst channel: ramps, textures and shades differ by less
_PALEST, _GREYEST = 85.0, 60.0
_EXPLAINED = 0.87
"""Of 10 000 renderings with up to nine shapes, compressed and scaled too, none had less than 0.89;
of photographs that are not grey all over the most had 0.83."""


def of_this_world(picture: Image.Image) -> bool:
    """Whether a picture shows shapes in the world's colours on a plain, pale ground."""
    small = picture.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    pixels = np.asarray(small, dtype=np.float32)
    rim = np.concatenate((pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]))
    ground = np.quantile(rim, (0.25, 0.75), axis=0).mean(axis=0)  # stripes have two tones
    if ground.min() < _PALEST or np.ptp(ground) > _GREYEST:
        return False
    tones = np.array([tone for tones in COLOURS.values() for tone in tones], dtype=np.float32)
    known = np.concatenate((ground[None], tones))
    away = np.abs(pixels[:, :, None] - known).max(axis=-1).min(axis=-1)
    return bool((away < _NEAR).mean() >= _EXPLAINED)
