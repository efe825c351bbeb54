"""Compile times of a first run: nothing that was compiled before is found."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from st3.engine import compiled

_CACHE = "TORCHINDUCTOR_CACHE_DIR"


@contextmanager
def cold() -> Iterator[None]:
    """Forget compiled code, and find none of inductor's on the disk, nor leave any there."""
    torch.compiler.reset()
    compiled.forget()
    before = os.environ.get(_CACHE)
    with tempfile.TemporaryDirectory(prefix="st3-inductor-") as folder:
        os.environ[_CACHE] = folder
        try:
            yield
        finally:
            os.environ.pop(_CACHE)
            if before is not None:
                os.environ[_CACHE] = before
