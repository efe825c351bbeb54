"""The packaged demo model: its world, its training and its measurement."""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent / "pictures"
PICTURE = _FOLDER / "shapes.png"
"""The bundled picture, drawn by `st3.demo.scenes` from a held-out scene."""
PICTURES = {"shapes": PICTURE} | {
    name: _FOLDER / f"{name}.png" for name in ("pair", "five", "crowd")
}
"""All bundled pictures by name: more held-out scenes, of two, five and nine shapes; the first ones
that seed 30 drew, whatever the model says to them."""

PROMPT = "Describe this picture."


def bundled(source: str) -> Path | None:
    """The picture that `demo` or `demo:NAME` stands for; None of any other source."""
    word, _, name = source.partition(":")
    return PICTURES.get(name or "shapes") if word == "demo" else None
