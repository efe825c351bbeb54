"""Procedural scenes: one to nine coloured shapes in the cells of a 3 x 3 grid, and their pictures.

The demo model is trained and measured on these and on nothing else. A scene is what is said of a
picture (which shape, which colour, which cell); `render` draws one of the pictures that show it.
Scenes whose `held_out` is true are never trained on, whatever the seed: training draws from the
others, evaluation from these, so no held-out scene can have been seen.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

PICTURE_SIZE = 192
PATCH_SIZE = 8
GRID = PICTURE_SIZE // PATCH_SIZE  # 24 patches a side, 576 visual tokens as in LLaVA-1.5
CELLS = 3
CELL_SIZE = PICTURE_SIZE // CELLS
CELL_GRID = CELL_SIZE // PATCH_SIZE

SHAPES = ("circle", "square", "triangle", "star", "cross")

# Several tones a colour, because people and programs do not agree on what "green" is.
COLOURS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "red": ((255, 0, 0), (200, 25, 30), (228, 60, 50)),
    "orange": ((255, 140, 0), (245, 130, 25), (255, 160, 20)),
    "yellow": ((255, 255, 0), (250, 220, 30), (235, 215, 60)),
    "green": ((0, 128, 0), (0, 230, 0), (50, 165, 70)),
    "cyan": ((0, 255, 255), (60, 205, 220), (30, 190, 200)),
    "blue": ((0, 0, 255), (40, 75, 215), (25, 50, 160)),
    "purple": ((128, 0, 128), (160, 45, 235), (130, 50, 180)),
    "black": ((0, 0, 0), (20, 20, 25), (38, 35, 35)),
}

_HELD_OUT_SHARE = 10  # one scene in ten


@dataclass(frozen=True, order=True)
class SceneObject:
    """One shape. `cell` counts the grid's cells 0..8 in reading order."""

    cell: int
    colour: str
    shape: str


@dataclass(frozen=True)
class Scene:
    """What a picture shows: objects in reading order, at most one a cell."""

    objects: tuple[SceneObject, ...]

    @property
    def held_out(self) -> bool:
        """Whether the scene belongs to the tenth that training never draws."""
        text = ";".join(f"{o.cell},{o.colour},{o.shape}" for o in self.objects)
        return zlib.crc32(text.encode()) % _HELD_OUT_SHARE == 0


@dataclass(frozen=True)
class Rendered:
    """A picture and, for each of its 24 x 24 patches, how much of it an object covers.

    Attributes:
        picture: RGB, 192 x 192.
        owner: int64 [24, 24], index into `scene.objects`, -1 where nothing is.
        coverage: float32 [24, 24], the covered share of the patch, 0 to 1.
    """

    picture: Image.Image
    owner: np.ndarray
    coverage: np.ndarray


def sample_scene(
    rng: np.random.Generator, *, objects: tuple[int, int] = (1, 4), held_out: bool | None = False
) -> Scene:
    """Draw a scene with between `objects[0]` and `objects[1]` objects.

    In two scenes of five, colours come from two or three only, and so do shapes in two of five:
    otherwise there would be little to count. `held_out` chooses the part of the scene space to draw
    from; None draws from all of it.
    """
    while True:
        count = int(rng.integers(objects[0], objects[1] + 1))
        cells = sorted(rng.choice(CELLS * CELLS, size=count, replace=False).tolist())
        colours, shapes = _palette(list(COLOURS), rng), _palette(list(SHAPES), rng)
        scene = Scene(
            tuple(
                SceneObject(cell, str(rng.choice(colours)), str(rng.choice(shapes)))
                for cell in cells
            )
        )
        if held_out is None or scene.held_out == held_out:
            return scene


def _palette(values: list[str], rng: np.random.Generator) -> list[str]:
    if rng.random() < 0.6:
        return values
    return list(rng.choice(values, size=int(rng.integers(2, 4)), replace=False))


def sample_distinct(rng: np.random.Generator, count: int) -> Iterator[Scene]:
    """Yield `count` held-out scenes, no two alike."""
    seen: set[Scene] = set()
    while len(seen) < count:
        scene = sample_scene(rng, held_out=True)
        if scene not in seen:
            seen.add(scene)
            yield scene


def render(scene: Scene, rng: np.random.Generator) -> Rendered:
    """Draw `scene`: background, tones, sizes and places inside the cells vary with `rng`.

    Half of the pictures are stretched, as pictures of other shapes are once they are made square;
    some shapes have an outline or are shaded.
    """
    pixels = _background(rng)
    owner = np.full((GRID, GRID), -1, dtype=np.int64)
    coverage = np.zeros((GRID, GRID), dtype=np.float32)
    stretch = float(np.exp(rng.uniform(-0.3, 0.3))) if rng.random() < 0.5 else 1.0
    outline = _outline_tone(rng) if rng.random() < 0.15 else None
    for index, thing in enumerate(scene.objects):
        mask, edge = _mask(thing.shape, stretch, rng)
        row, column = divmod(thing.cell, CELLS)
        rows = slice(row * CELL_SIZE, (row + 1) * CELL_SIZE)
        columns = slice(column * CELL_SIZE, (column + 1) * CELL_SIZE)
        window = pixels[rows, columns]
        fill = _tone(thing.colour, rng) + _shade(rng)
        if outline is not None:
            fill = fill + edge[..., None] * (outline - fill)
        window += mask[..., None] * (fill - window)
        patches = mask.reshape(CELL_GRID, PATCH_SIZE, CELL_GRID, PATCH_SIZE).mean(axis=(1, 3))
        patch_rows = slice(row * CELL_GRID, (row + 1) * CELL_GRID)
        patch_columns = slice(column * CELL_GRID, (column + 1) * CELL_GRID)
        coverage[patch_rows, patch_columns] = patches
        owner[patch_rows, patch_columns] = np.where(patches > 0, index, -1)
    if rng.random() < 0.7:
        pixels += rng.normal(0, rng.uniform(1, 7), pixels.shape).astype(np.float32)
    picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    return Rendered(picture, owner, coverage)


def _background(rng: np.random.Generator) -> np.ndarray:
    """float32 [192, 192, 3]: white, or a pale or grey tint: plain, slowly changing or textured."""
    kind = rng.random()
    if kind < 0.25:
        return np.full((PICTURE_SIZE, PICTURE_SIZE, 3), 255.0, dtype=np.float32)
    base = rng.uniform(115, 245) + rng.uniform(-16, 16, 3)
    pixels = np.empty((PICTURE_SIZE, PICTURE_SIZE, 3), dtype=np.float32)
    pixels[:] = base
    if kind < 0.4:
        return pixels
    pixels += _ramp(PICTURE_SIZE)[:, None, None] * rng.uniform(-14, 14, 3).astype(np.float32)
    pixels += _ramp(PICTURE_SIZE)[None, :, None] * rng.uniform(-14, 14, 3).astype(np.float32)
    if kind > 0.65:
        pixels += _texture(rng)[..., None] * rng.uniform(-28, 28, 3).astype(np.float32)
    return pixels


def _ramp(size: int) -> np.ndarray:
    ramp: np.ndarray = np.linspace(-1, 1, size, dtype=np.float32)
    return ramp


def _texture(rng: np.random.Generator) -> np.ndarray:
    """float32 [192, 192] in -1..1: stripes, checks, or clouds of some coarseness."""
    kind = int(rng.integers(3))
    if kind == 2:
        cells = int(rng.integers(4, 40))
        clouds = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
        size = (PICTURE_SIZE, PICTURE_SIZE)
        smooth: np.ndarray = np.array(clouds.resize(size, Image.Resampling.BICUBIC))
        return smooth
    place = np.arange(PICTURE_SIZE, dtype=np.float32)
    turn, period = rng.uniform(0, math.pi), rng.uniform(6, 60)
    across = place[:, None] * math.sin(turn) + place[None, :] * math.cos(turn)
    along = place[:, None] * math.cos(turn) - place[None, :] * math.sin(turn)
    waves: np.ndarray = np.sign(np.sin(across * (2 * math.pi / period)))
    if kind == 1:
        waves = waves * np.sign(np.sin(along * (2 * math.pi / period)))
    return waves


def _tone(colour: str, rng: np.random.Generator) -> np.ndarray:
    """float32 [3]: a random mixture of the colour's tones, slightly off."""
    tones = np.array(COLOURS[colour], dtype=np.float32)
    mixed = rng.dirichlet(np.full(len(tones), 0.6)) @ tones
    return (mixed + rng.normal(0, 6, 3)).astype(np.float32)


def _outline_tone(rng: np.random.Generator) -> np.ndarray:
    """float32 [3]: of outlines, near black or near white."""
    return np.full(3, rng.uniform(0, 60) if rng.random() < 0.6 else 250, dtype=np.float32)


def _shade(rng: np.random.Generator) -> np.ndarray:
    """float32 [64, 64, 1]: how much lighter a shape is from place to place; mostly not at all."""
    if rng.random() < 0.7:
        return np.zeros((1, 1, 1), dtype=np.float32)
    down, across = rng.uniform(-22, 22, 2)
    slope: np.ndarray = _ramp(CELL_SIZE)[:, None] * down + _ramp(CELL_SIZE)[None, :] * across
    shade: np.ndarray = slope[..., None].astype(np.float32)
    return shade


def _mask(shape: str, stretch: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two float32 [64, 64] in 0..1: one shape inside a cell, anti-aliased or not; and its rim."""
    scale = int(rng.choice((1, 2, 3)))
    half = CELL_SIZE / 2 - 1
    radius = rng.uniform(16, 28)
    radii = np.minimum((radius * stretch**0.5, radius / stretch**0.5), half)
    centre = CELL_SIZE / 2 + rng.uniform(-1, 1, 2) * (half - radii)
    size = CELL_SIZE * scale
    turn = math.radians(rng.normal(0, 6))
    found = []
    for inner in (0.0, rng.uniform(1.2, 3)):
        canvas = Image.new("L", (size, size))
        draw = ImageDraw.Draw(canvas)
        (x, y), (a, b) = centre * scale, (radii - inner) * scale
        if shape == "circle":
            draw.ellipse((x - a, y - b, x + a, y + b), fill=255)
        else:
            draw.polygon(_outline(shape, x, y, a, b, turn), fill=255)
        if scale > 1:
            canvas = canvas.resize((CELL_SIZE, CELL_SIZE), Image.Resampling.BOX)
        found.append(np.asarray(canvas, dtype=np.float32) / 255)
    whole, inside = found
    return whole, whole - np.minimum(inside, whole)


def _outline(
    shape: str, x: float, y: float, a: float, b: float, turn: float
) -> list[tuple[float, float]]:
    """The corners of a polygon with half axes a, b around (x, y), turned by `turn` radians."""
    if shape == "square":
        points = [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]
    elif shape == "triangle":
        points = [(0.0, -1.0), (0.95, 0.8), (-0.95, 0.8)]
    elif shape == "star":
        angles = [math.pi * i / 5 for i in range(10)]
        radii = [1.0 if i % 2 == 0 else 0.42 for i in range(10)]
        points = [(q * math.sin(a), -q * math.cos(a)) for a, q in zip(angles, radii, strict=True)]
    elif shape == "cross":
        n, w = 0.32, 1.0
        points = [(-n, -w), (n, -w), (n, -n), (w, -n), (w, n), (n, n)]
        points += [(n, w), (-n, w), (-n, n), (-w, n), (-w, -n), (-n, -n)]
    else:
        raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")
    cos, sin = math.cos(turn), math.sin(turn)
    return [(x + a * (cos * u - sin * v), y + b * (sin * u + cos * v)) for u, v in points]
