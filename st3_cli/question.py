"""What a command asks: the arguments IMAGE... PROMPT, and which frames of a video it shows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from st3_cli import options as o
from st3_cli.console import aside, err
from st3_cli.errors import UsageError
from st3_cli.progress import frame_bar

BUNDLED = "demo"
"""As IMAGE, the bundled picture, as it is the packaged model for --model; demo:crowd and others
of `st3.demo.PICTURES` go the same way; a file is ./demo."""
SHOWN = "Video"


def utf8(text: str | None) -> str | None:
    """A text as it was typed, whatever the locale: Python keeps bytes that this does not know."""
    try:
        return None if text is None else text.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        raise typer.BadParameter("no valid text: it has bytes that are no UTF-8") from None


def _asked(texts: list[str] | None) -> list[str]:
    """The prompt as it was typed; paths are bytes, and stay as they are."""
    *sources, last = texts or [""]
    return [*sources, utf8(last) or ""] if sources else list(texts or [])


QuestionArgument = Annotated[
    list[str] | None,
    typer.Argument(
        help="What is shown, then the question. Shown is a picture, several, or a video (a film, "
        "a GIF, a folder of frames): a path, a URL, - for standard input, or demo for the bundled "
        "picture (a file of that name: ./demo). Alone, it is asked: Describe this picture.",
        metavar="IMAGE... PROMPT", show_default=False, callback=_asked,
    ),
]  # fmt: skip
FramesOption = Annotated[
    int | None,
    o.option(
        SHOWN, "--frames", metavar="N", min=1, show_default="the model's own choice",
        help="Frames of a video, evenly spread.",
    ),
]  # fmt: skip
FpsOption = Annotated[
    float | None,
    o.option(SHOWN, "--fps", metavar="X", help="Frames of each second of a video."),
]


def read_question(asked: Sequence[str] | None) -> tuple[list[str], str | None]:
    """What is shown and what is asked: the last of several arguments is the prompt.

    Raises:
        UsageError: one of them is empty, or a file stands where the prompt belongs.
    """
    sources, prompt = list(asked or []), None
    if len(sources) > 1:
        prompt = sources.pop()
    if "" in sources:
        raise UsageError("the picture is empty: give a path, a URL or -, or nothing at all")
    if prompt is None:
        return sources, None
    if not prompt.strip():
        raise UsageError("the prompt is empty: ask something, e.g. 'What do you see?'")
    if Path(prompt).suffix and os.path.isfile(prompt):
        raise UsageError(f"the prompt comes last, and {prompt} is a file: ask something behind it")
    return sources, prompt


def check_frames(frames: int | None, fps: float | None) -> None:
    """Either says which frames of a video are taken.

    Raises:
        UsageError: both are given, or a rate that is none.
    """
    if frames is not None and fps is not None:
        raise UsageError("--frames and --fps both say which frames are taken: give one of them")
    if fps is not None and not 0 < fps < float("inf"):
        raise UsageError("--fps: give a number above 0, such as 1 or 0.5")


def open_visuals(sources: Sequence[str], frames: int | None, fps: float | None) -> Any:
    """A picture, a list of several, or a video; without a source, the bundled picture.

    Raises:
        PictureError, VideoError: see `st3.inference.video_files.open_visual`.
        UsageError: a video among others, or frames asked of pictures.
    """
    from st3 import demo
    from st3.inference.video_files import open_visual
    from st3.inference.videos import Video

    found: list[Any] = [
        open_visual(demo.bundled(source) or source) for source in sources or [BUNDLED]
    ]
    video = next((one for one in found if isinstance(one, Video)), None)
    if video is None:
        if frames is not None or fps is not None:
            given = "--fps" if frames is None else "--frames"
            raise UsageError(f"{given} goes with a video, and a picture is shown")
        return found[0] if len(found) == 1 else found
    if len(found) > 1:
        raise UsageError(f"{video.name} is a video: show it alone, and no other beside it")
    if frames is not None:
        video.evenly(frames)  # so that it is refused before a model is loaded
    if fps is not None:
        video.every(fps)
    return video


def take_frames(visual: Any, processor: Any, frames: int | None, fps: float | None) -> Any:
    """The clip that a model is shown of a video, which is said on stderr; pictures as they are.

    Raises:
        ValueError: see `st3.inference.visuals.frames_of` and `st3.inference.videos.Video.take`.
    """
    from st3.inference.videos import Video
    from st3.inference.visuals import frames_of, takes_videos

    if not isinstance(visual, Video):
        return visual
    moves = takes_videos(processor)
    if frames is not None:
        chosen = visual.evenly(frames)
    else:
        chosen = frames_of(visual, processor) if fps is None else visual.every(fps)
    with frame_bar() as on_frame:
        clip = visual.take(chosen, on_frame)
    last = "" if len(clip.frames) == 1 else f" to {clip.seconds[-1]:.1f}"
    when = f", at {clip.seconds[0]:.1f}{last} s" if visual.timed else ""
    aside(f"video: {clip.name}, {len(clip.frames)} of {clip.total} frames{when}")
    if not moves:
        err.print(
            "note: this model takes no videos: it is shown the frames as pictures, in their order.",
            style="yellow",
            soft_wrap=True,
        )
    return clip


def fit_frames(visual: Any, live: Any, processor: Any, prompt: str) -> Any:
    """Fewer frames of a clip that nobody has chosen, if the model's context asks for it."""
    from st3.inference.fitting import fitted, room_of
    from st3.inference.videos import Clip

    if not isinstance(visual, Clip):
        return visual
    fewer = fitted(processor, visual, prompt, room_of(live))
    if len(fewer.frames) < len(visual.frames):
        aside(f"note: the model's context holds {len(fewer.frames)} of these frames")
    return fewer


def describe_clip(visual: Any) -> dict[str, Any]:
    """What a JSON document says of a video, under `video`; empty of pictures."""
    from st3.inference.videos import Clip

    if not isinstance(visual, Clip):
        return {}
    return {
        "video": {
            "source": visual.name,
            "frames": list(visual.indices),
            "seconds": list(visual.seconds),
            "total_frames": visual.total,
            "fps": visual.fps,
        }
    }


def note_foreign(model: str, visual: Any) -> None:
    """Say in a line that the demo model does not know what it is shown, if that is so."""
    from st3.demo.likeness import of_this_world
    from st3.inference.visuals import pictures_of

    if model != "demo":
        return
    pictures = pictures_of(visual)
    foreign = sum(not of_this_world(picture) for picture in pictures)
    if not foreign:
        return
    which = "this picture does" if len(pictures) == 1 else f"{foreign} of {len(pictures)} do"
    err.print(
        f"note: {which} not look like the demo model's world, coloured shapes on "
        "a pale ground: what it says is a guess. Real pictures are for --model 7b.",
        style="yellow",
        soft_wrap=True,
    )
