"""What does something to the process that reads it or makes it ready; importable in workers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from st3 import demo
from st3.batch.preparing import Prepared
from st3.batch.row import Row


@dataclass(frozen=True)
class Deadly:
    """Kills whoever reads it, as a decoder that crashes does."""

    def read(self) -> tuple[bytes, str]:
        os._exit(9)


@dataclass(frozen=True)
class Harmless:
    """The demo's picture."""

    def read(self) -> tuple[bytes, str]:
        return demo.PICTURE.read_bytes(), "the demo's picture"


@dataclass(frozen=True)
class Weighing:
    """Makes rows of so many bytes ready, and leaves a file for each."""

    folder: Path
    bytes: int

    def __call__(self, row: Row) -> Prepared:
        (self.folder / str(row.id)).touch()
        return Prepared(row, {"pixel_values": np.zeros(self.bytes, np.uint8)})
