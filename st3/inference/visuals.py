"""What a question shows, as a model's processor takes it: a picture, several, or a video.

A family whose processor takes videos gets them so. Any other gets the frames as pictures, which is
how such models are asked about videos.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image
from transformers.utils.import_utils import is_torchvision_available
from transformers.video_utils import VideoMetadata

from st3.inference.chat import Message, written
from st3.inference.pictures import PictureError, check_processed
from st3.inference.processors import TORCHVISION
from st3.inference.videos import Clip, Video, spread

Visual = Image.Image | Sequence[Image.Image] | Clip

FRAMES = 8
"""Of a video, where neither the user nor the checkpoint says how many (ours)."""
_NOT_OF_SAMPLING = {"do_sample_frames", "video_metadata", "return_metadata", "device"}


def pictures_of(visual: Visual) -> tuple[Image.Image, ...]:
    """The pictures, or the frames, in order."""
    if isinstance(visual, Image.Image):
        return (visual,)
    return visual.frames if isinstance(visual, Clip) else tuple(visual)


def with_pictures(visual: Visual, pictures: Sequence[Image.Image]) -> Visual:
    """The same showing others."""
    return replace(visual, frames=tuple(pictures)) if isinstance(visual, Clip) else pictures


def takes_videos(processor: Any) -> bool:
    """Whether a processor takes videos, and not their frames as pictures: a checkpoint may bring
    no video processor, though its family has one.

    Raises:
        ValueError: it would, if torchvision were here.
    """
    if getattr(processor, "video_processor", None) is not None:
        return True
    if "video_processor" in processor.get_attributes() and not is_torchvision_available():
        raise ValueError(f"this model's videos need torchvision: {TORCHVISION}")
    return False


def frames_of(video: Video, processor: Any) -> list[int]:
    """Numbers of the frames that a checkpoint takes of a video, decoded or not.

    Those that its own video processor samples; where it samples none, or frames are shown as
    pictures, `FRAMES` evenly spread, or all if there are fewer. Of a folder, whose frames somebody
    chose, all.

    Raises:
        ValueError: see `takes_videos`.
    """
    own = processor.video_processor if takes_videos(processor) else None
    if not video.timed:
        return list(range(video.total))
    asks = ("do_sample_frames", "num_frames", "fps")
    if own is not None and any(getattr(own, setting, None) for setting in asks):
        names = {*own.valid_kwargs.__annotations__} - _NOT_OF_SAMPLING
        settings = {name: getattr(own, name, None) for name in names}
        try:
            found = own.sample_frames(metadata=_metadata(video), **settings)
            return sorted(int(index) for index in found)
        except (ValueError, TypeError, ZeroDivisionError, RuntimeError):
            pass  # it asks for more than there are, or does not say how many
    asked = getattr(own, "num_frames", None) or FRAMES
    return spread(video.total, min(asked, video.total))


def check_visual(visual: Visual, processor: Any) -> None:
    """See that the processor will not blow any of it up.

    Raises:
        PictureError: it would; see `check_processed`.
        ValueError: no picture at all, or see `takes_videos`.
    """
    pictures = pictures_of(visual)
    if not pictures:
        raise ValueError("a question shows at least one picture, and there is none")
    if isinstance(visual, Clip):  # all of one size
        part = "video_processor" if takes_videos(processor) else "image_processor"
        check_processed(pictures[0], getattr(processor, part))
        return
    for picture in pictures:
        check_processed(picture, processor.image_processor)


def processed(processor: Any, visuals: Sequence[Visual], prompts: Sequence[str]) -> dict[str, Any]:
    """What the processor makes of prompts that show something each.

    Args:
        processor: from `st3.load`.
        visuals: of one kind: pictures, or videos.
        prompts: one each, without any chat format.

    Raises:
        ValueError: see `written` and `takes_videos`; or a video that the processor refuses,
            as some do one of a single frame.
    """
    texts = [
        written(processor, [message(visual, processor, prompt)])
        for visual, prompt in zip(visuals, prompts, strict=True)
    ]
    return tokenized(processor, visuals, texts)


def message(visual: Visual, processor: Any, text: str) -> Message:
    """What is said with something that is shown, or with no pictures.

    Raises:
        ValueError: see `takes_videos`.
    """
    if isinstance(visual, Clip) and takes_videos(processor):
        return Message(text, video=True)
    return Message(text, len(pictures_of(visual)))


def tokenized(processor: Any, visuals: Sequence[Visual], texts: Sequence[str]) -> dict[str, Any]:
    """The same of texts in the chat format, a placeholder in them for all that is shown."""
    clips = [visual for visual in visuals if isinstance(visual, Clip)]
    how: dict[str, Any] = {"padding": len(texts) > 1, "return_tensors": "pt"}
    images = [list(pictures_of(visual)) for visual in visuals]
    if clips and takes_videos(processor):
        how |= {
            "videos": [[np.stack([np.asarray(frame) for frame in clip.frames])] for clip in clips],
            "video_metadata": [[_metadata(clip, list(clip.indices))] for clip in clips],
            "do_sample_frames": False,
        }
    elif any(images):  # a list a row, as some want it
        how["images"] = images
    try:
        made = dict(processor(text=[*texts], **how))
    except (ValueError, RuntimeError) as error:
        if "videos" not in how:
            if "aspect ratio" in str(error):
                raise _too_narrow(visuals, error) from error
            raise
        count, (width, height) = len(clips[0].frames), clips[0].frames[0].size
        raise ValueError(
            f"this model's processor takes no video of {count} frame{'s' * (count > 1)} of "
            f"{width} x {height} pixels: {error}"
        ) from error
    made.pop("video_metadata", None)  # no model's
    return made


def _too_narrow(visuals: Sequence[Visual], error: Exception) -> PictureError:
    sizes = sorted({picture.size for visual in visuals for picture in pictures_of(visual)})
    width, height = max(sizes, key=lambda size: max(size) / min(size))
    return PictureError(
        f"a picture of {width} x {height} pixels is too narrow for this model's processor "
        f"({error}): crop it to a part that is less narrow"
    )


def _metadata(video: Video | Clip, indices: list[int] | None = None) -> VideoMetadata:
    width, height = video.size if isinstance(video, Video) else video.frames[0].size
    return VideoMetadata(
        total_num_frames=video.total, fps=video.fps, width=width, height=height,
        duration=video.total / video.fps, frames_indices=indices,
    )  # fmt: skip
