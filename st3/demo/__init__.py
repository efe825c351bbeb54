"""The packaged demo model: its world, its training and its measurement."""

from __future__ import annotations

from pathlib import Path

PICTURE = Path(__file__).parent / "pictures" / "shapes.png"
"""The bundled picture, drawn by `st3.demo.scenes` from a held-out scene."""

PROMPT = "Describe this picture."
