"""Pictures of scenes as other people draw them: not a line of the training renderer.

Vector graphics, a paint program, a photograph of sorts, thumbnails, posters, wide strips and
transparent icons, each saved as a file of its own format and size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Polygon
from PIL import Image, ImageDraw, ImageFilter

Thing = tuple[int, str, str]  # cell 0..8 in reading order, colour, shape

SCENES: tuple[tuple[Thing, ...], ...] = (
    ((0, "red", "star"), (4, "blue", "circle")),
    ((1, "black", "square"), (5, "green", "triangle"), (6, "orange", "cross")),
    ((2, "purple", "circle"), (3, "yellow", "star"), (7, "red", "square")),
    ((8, "green", "cross"),),
    ((0, "blue", "triangle"), (2, "blue", "square"), (4, "red", "circle"), (8, "black", "star")),
    ((3, "cyan", "triangle"), (5, "purple", "cross")),
)
PLAIN = {
    "red": "#e41a1c", "orange": "#ff8c00", "yellow": "#ffe119", "green": "#2ca02c",
    "cyan": "#17becf", "blue": "#1f3fd0", "purple": "#8e24aa", "black": "#111111",
}  # fmt: skip


def corners(shape: str, sides: int = 40) -> list[tuple[float, float]]:
    """The outline in a box from -1 to 1, y downwards."""
    if shape == "circle":
        turns = [2 * math.pi * i / sides for i in range(sides)]
        return [(math.cos(a), math.sin(a)) for a in turns]
    if shape == "square":
        return [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]
    if shape == "triangle":
        return [(0, -0.95), (0.95, 0.75), (-0.95, 0.75)]
    if shape == "star":
        points = []
        for i in range(10):
            r = 1.0 if i % 2 == 0 else 0.4
            points.append((r * math.sin(math.pi * i / 5), -r * math.cos(math.pi * i / 5)))
        return points
    t = 0.33
    return [(-t, -1), (t, -1), (t, -t), (1, -t), (1, t), (t, t),
            (t, 1), (-t, 1), (-t, t), (-1, t), (-1, -t), (-t, -t)]  # fmt: skip


def _place(cell: int, width: int, height: int) -> tuple[float, float]:
    return (cell % 3 + 0.5) * width / 3, (cell // 3 + 0.5) * height / 3


def _fill(picture: Image.Image, scene: tuple[Thing, ...], radius: float) -> None:
    """Draw all things on `picture`, plainly."""
    draw = ImageDraw.Draw(picture)
    for cell, colour, shape in scene:
        x, y = _place(cell, *picture.size)
        points = [(x + radius * u, y + radius * v) for u, v in corners(shape)]
        draw.polygon(points, fill=PLAIN[colour])


def vector(scene: tuple[Thing, ...], folder: Path) -> Path:
    """A matplotlib figure, 400 x 400, PNG."""
    figure = Figure(figsize=(4, 4), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, 3)
    axes.set_ylim(3, 0)
    axes.axis("off")
    for cell, colour, shape in scene:
        x, y = cell % 3 + 0.5, cell // 3 + 0.5
        if shape == "circle":
            axes.add_patch(Circle((x, y), 0.36, color=PLAIN[colour]))
        else:
            points = [(x + 0.38 * u, y + 0.38 * v) for u, v in corners(shape)]
            axes.add_patch(Polygon(points, color=PLAIN[colour]))
    path = folder / "vector.png"
    figure.savefig(path)
    return path


def paint(scene: tuple[Thing, ...], folder: Path) -> Path:
    """A paint program: 640 x 480 BMP, hard edges, black outlines, a shaky hand."""
    rng = np.random.default_rng(1)
    picture = Image.new("RGB", (640, 480), "white")
    draw = ImageDraw.Draw(picture)
    for cell, colour, shape in scene:
        x, y = _place(cell, 640, 480)
        points = [
            (x + 62 * u + rng.normal(0, 2), y + 62 * v + rng.normal(0, 2))
            for u, v in corners(shape, 24)
        ]
        draw.polygon(points, fill=PLAIN[colour])
        draw.line([*points, points[0]], fill="black", width=4)
    path = folder / "paint.bmp"
    picture.save(path)
    return path


def photograph(scene: tuple[Thing, ...], folder: Path) -> Path:
    """1600 x 1200 JPEG: grainy grey paper, darker towards the rim, soft edges."""
    rng = np.random.default_rng(2)
    y, x = np.mgrid[-1:1:1200j, -1:1:1600j]
    paper = 205 - 35 * (x**2 + y**2)[..., None] + rng.normal(0, 6, (1200, 1600, 1))
    picture = Image.fromarray(np.repeat(paper, 3, axis=2).clip(0, 255).astype(np.uint8))
    _fill(picture, scene, 150)
    path = folder / "photograph.jpg"
    picture.filter(ImageFilter.GaussianBlur(4)).save(path, quality=55)
    return path


def thumbnail(scene: tuple[Thing, ...], folder: Path) -> Path:
    """64 x 64 PNG."""
    with Image.open(vector(scene, folder)) as large:
        small = large.convert("RGB").resize((64, 64), Image.Resampling.LANCZOS)
    path = folder / "thumbnail.png"
    small.save(path)
    return path


def poster(scene: tuple[Thing, ...], folder: Path) -> Path:
    """2000 x 2000 WebP: pastel stripes behind."""
    picture = Image.new("RGB", (2000, 2000), "#f4efe6")
    draw = ImageDraw.Draw(picture)
    for start in range(-2000, 2000, 160):
        draw.line([(start, 2000), (start + 2000, 0)], fill="#e3ecf3", width=70)
    _fill(picture, scene, 230)
    path = folder / "poster.webp"
    picture.save(path, quality=80)
    return path


def strip(scene: tuple[Thing, ...], folder: Path) -> Path:
    """1000 x 600 PNG: made square, everything gets narrow."""
    picture = Image.new("RGB", (3000, 1800), "#fbfbfb")
    _fill(picture, scene, 240)
    path = folder / "strip.png"
    picture.resize((1000, 600), Image.Resampling.BOX).save(path)
    return path


def icon(scene: tuple[Thing, ...], folder: Path) -> Path:
    """256 x 256 palette GIF with a handful of colours."""
    picture = Image.new("RGB", (256, 256), "#dddddd")
    _fill(picture, scene, 28)
    path = folder / "icon.gif"
    picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=16).save(path)
    return path


STYLES: dict[str, Callable[[tuple[Thing, ...], Path], Path]] = {
    "vector": vector,
    "paint": paint,
    "photograph": photograph,
    "thumbnail": thumbnail,
    "poster": poster,
    "strip": strip,
    "icon": icon,
}
