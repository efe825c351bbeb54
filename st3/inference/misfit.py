"""What it means if a picture does not fit into the model: the processor's files are another's.

A processor and a model agree on sizes that both have written down. Where they do not, transformers
fails deep inside with words about tensors; here it is told where the failure came from.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from traceback import walk_tb

_FAILURES = (ValueError, RuntimeError, IndexError)
_MACHINE = ("memory", "cuda error", "cudnn")  # in words of failures that no file causes
_PLACES = {"get_image_features", "get_video_features", "get_placeholder_mask", "get_rope_index"}
"""Functions of transformers' models that encode pictures, and put them in their places."""


@contextmanager
def naming_misfits() -> Iterator[None]:
    """Around a model's forward.

    Raises:
        ValueError: in place of what went wrong where pictures are encoded and placed.
    """
    try:
        yield
    except _FAILURES as error:
        if any(word in str(error).lower() for word in _MACHINE):
            raise
        passed = {frame.f_code.co_name for frame, _ in walk_tb(error.__traceback__)}
        if not passed & _PLACES:
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            "the picture does not fit the model as this checkpoint's processor makes it "
            f"({reason}): take config.json and the processor's files from one checkpoint"
        ) from error
