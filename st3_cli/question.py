"""What a command asks: the arguments IMAGE and PROMPT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from st3_cli.console import err
from st3_cli.errors import UsageError

BUNDLED = "demo"
"""As IMAGE, the bundled picture, as it is the packaged model for --model; a file is ./demo."""


def utf8(text: str | None) -> str | None:
    """A text as it was typed, whatever the locale: Python keeps bytes that this does not know."""
    try:
        return None if text is None else text.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        raise typer.BadParameter("no valid text: it has bytes that are no UTF-8") from None


ImageArgument = Annotated[
    str | None,
    typer.Argument(
        help="A path, a URL, - for standard input, or demo for the bundled picture (a file of "
        "that name: ./demo).",
        metavar="IMAGE", show_default=BUNDLED,
    ),
]  # fmt: skip
PromptArgument = Annotated[
    str | None,
    typer.Argument(
        help="The question.", metavar="PROMPT", show_default="Describe this picture.",
        callback=utf8,
    ),
]  # fmt: skip


def check_question(image: str | None, prompt: str | None) -> None:
    """A picture and a prompt may be left out, but not be empty.

    Raises:
        UsageError: one of them is.
    """
    if image == "":
        raise UsageError("the picture is empty: give a path, a URL or -, or nothing at all")
    if prompt is not None and not prompt.strip():
        raise UsageError("the prompt is empty: ask something, e.g. 'What do you see?'")


def open_image(image: str | None) -> Any:
    """The picture that IMAGE names; without one, the bundled one.

    Raises:
        PictureError: there is no usable picture there.
    """
    from st3 import demo
    from st3.inference.pictures import open_picture

    return open_picture(demo.PICTURE if image is None or image == BUNDLED else image)


def note_foreign(model: str, pictures: Sequence[Any]) -> None:
    """Say in a line that the demo model does not know what it is shown, if that is so."""
    from st3.demo.likeness import of_this_world

    if model != "demo":
        return
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
