"""Pictures that do something to the process that reads them; importable in workers."""

from __future__ import annotations

import os
from dataclasses import dataclass

from st3 import demo


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
