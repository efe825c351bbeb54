"""Libraries that print whatever they do, and programs that they start, kept from the terminal."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hushed() -> Iterator[None]:
    """Standard output and error go nowhere, also those of other programs; exceptions pass."""
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as nowhere:
        before = [os.dup(number) for number in (1, 2)]
        streams = sys.stdout, sys.stderr
        try:
            for number in (1, 2):
                os.dup2(nowhere.fileno(), number)
            sys.stdout = sys.stderr = nowhere
            yield
        finally:
            sys.stdout, sys.stderr = streams
            for number, old in zip((1, 2), before, strict=True):
                os.dup2(old, number)
                os.close(old)
