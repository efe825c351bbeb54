"""From a row to what a model takes: pictures decoded and processed, in whatever process.

Arrays instead of tensors: they go through a pipe as they are, and need no shared memory, of which
containers have little.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from st3.batch.row import Row, Stored
from st3.inference.fitting import Room, fitted, fitting_inputs
from st3.inference.pictures import decode_picture, open_picture, to_rgb
from st3.inference.video_files import open_visual
from st3.inference.videos import Clip, Video
from st3.inference.visuals import Visual, frames_of


@dataclass(frozen=True, slots=True)
class Prepared:
    """A row, ready for the model, or with a problem.

    Attributes:
        row: what was asked.
        inputs: of the model for this row alone: arrays, and whatever else its processor makes.
        tokens, visual: of the prompt.
        seconds: that it took.
        problem: why it cannot be answered; None if it can.
    """

    row: Row
    inputs: Mapping[str, Any] = field(default_factory=dict, repr=False)
    tokens: int = 0
    visual: int = 0
    seconds: float = 0.0
    problem: str | None = None

    @property
    def bytes(self) -> int:
        """Of its arrays."""
        return sum(x.nbytes for x in self.inputs.values() if isinstance(x, np.ndarray))


@dataclass(frozen=True)
class Preparer:
    """Makes rows ready; goes to other processes.

    Attributes:
        processor: of the model.
        room: what fits.
        frames, fps: which frames of a video are taken, see `st3 run`; None: the model's choice, and
            as many as fit.
    """

    processor: Any
    room: Room
    frames: int | None = None
    fps: float | None = None

    def __call__(self, row: Row) -> Prepared:
        """Whatever is wrong is the row's problem, in one line."""
        began = time.perf_counter()
        if row.problem is not None:
            return Prepared(row, problem=row.problem)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # once for each row they would say nothing more
                made = self.inputs(row)
        except Exception as error:  # decoders and processors raise whatever they stumble over
            return Prepared(row, problem=one_line(error), seconds=time.perf_counter() - began)
        ids = made["input_ids"]
        seen = self.room.visual(ids)
        return Prepared(row, arrays(made), ids.shape[1], seen, time.perf_counter() - began)

    def inputs(self, row: Row) -> dict[str, Any]:
        """What the processor makes of it.

        Raises:
            Exception: whatever is wrong.
        """
        return fitting_inputs(self.processor, [self.visual(row)], [row.prompt], self.room)

    def visual(self, row: Row) -> Visual:
        """What it shows, opened."""
        if row.video is None:
            pictures = [open_any(image) for image in row.images]
            return pictures[0] if len(pictures) == 1 else pictures
        if isinstance(row.video, Clip):
            return row.video
        opened = open_visual(row.video)
        if not isinstance(opened, Video):
            return opened
        if self.frames is not None:
            return opened.take(opened.evenly(self.frames))
        if self.fps is not None:
            return opened.take(opened.every(self.fps))
        clip = opened.take(frames_of(opened, self.processor))
        return fitted(self.processor, clip, row.prompt, self.room)


def arrays(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What a processor made, tensors as arrays."""
    return {key: x.numpy() if isinstance(x, torch.Tensor) else x for key, x in inputs.items()}


def padding(processor: Any) -> int:
    """Id of the token that fills rows up; any will do where the tokenizer has none."""
    pad = processor.tokenizer.pad_token_id
    return 0 if pad is None else int(pad)


def open_any(image: Any) -> Image.Image:
    """A picture from whatever a row may hold.

    Raises:
        PictureError: there is no usable picture there. TypeError: nothing that could be one.
    """
    if isinstance(image, Image.Image):
        return to_rgb(ImageOps.exif_transpose(image))
    if isinstance(image, (str, Path)):
        return open_picture(image)
    if isinstance(image, bytes):
        return decode_picture(image, "the picture")
    if isinstance(image, Stored):
        return decode_picture(*image.read())
    raise TypeError(f"an image must be a path, bytes or a PIL picture, not {type(image).__name__}")


def one_line(error: BaseException) -> str:
    """What an error says, or else what it is."""
    return " ".join(str(error).split()) or type(error).__name__
