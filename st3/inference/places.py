"""Where visual tokens lie on pictures, to draw on: any grid, tiles, thumbnails, several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

Array = np.ndarray[Any, Any]

NOWHERE = -1
_SIDE = 480  # pixels of the longer side that is drawn
_NARROWEST = 64  # and of the shorter, however narrow the picture: so that its tokens show
_GAP = 6
_APART = 2e-3  # of a side: two tokens that are less apart are beside or above each other
_SAME = 1e-3  # of a side: that a place may be off
_OVERLAP = 0.2  # of the smaller of two grids: more, and they are drawn on a picture each


@dataclass(frozen=True)
class View:
    """A picture, and the tokens of those grids that lie on it side by side.

    Attributes:
        picture: its number in the prompt.
        pixels: float [height, width, 3] in 0..1.
        owner: int [height, width], the number of the visual token that a pixel went into, or
            `NOWHERE` where the model does not see it in this view.
    """

    picture: int
    pixels: Array
    owner: Array

    @property
    def tokens(self) -> int:
        """How many lie on it."""
        return len(np.unique(self.owner[self.owner != NOWHERE]))


@dataclass(frozen=True)
class Places:
    """All views of a prompt.

    Attributes:
        views: a picture that is cut into tiles and seen as a whole as well has two of them.
        count: visual tokens of the prompt.
        nowhere: numbers of those that stand for no part of a picture, as at the end of a line.
        shown: what the prompt shows, where that is several: "3 pictures", "16 frames".
    """

    views: tuple[View, ...]
    count: int
    nowhere: tuple[int, ...]
    shown: str = ""

    @cached_property
    def canvas(self) -> Array:
        """All views in one sheet, float [height, width, 3]; white between them."""
        return _sheet([view.pixels for view in self.views], 1.0)

    @cached_property
    def grey(self) -> Array:
        """The sheet without its colours, float [height, width, 1]."""
        grey: Array = self.canvas.mean(axis=2, keepdims=True)
        return grey

    @cached_property
    def owner(self) -> Array:
        """The token of each pixel of the sheet, `NOWHERE` where there is none."""
        return _sheet([view.owner for view in self.views], NOWHERE)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the sheet."""
        return int(self.owner.shape[0]), int(self.owner.shape[1])

    @property
    def seen(self) -> str:
        """What lies side by side or one above the other, as a title says it; empty of one view."""
        *most, last = [str(view.tokens) for view in self.views]
        if not most:
            return ""
        seen = ", ".join(filter(None, (self.shown, f"seen {len(self.views)} times")))
        each = f"{last} visual tokens each"
        if {*most} != {last}:
            each = f"{', '.join(most)} and {last} visual tokens"
        more = f", and {len(self.nowhere)} that lie nowhere" if self.nowhere else ""
        return f"{seen}: of {each}{more}"

    def spread(self, values: Array, elsewhere: Any) -> Array:
        """One value a visual token -> one a pixel of the sheet, `elsewhere` where there is none."""
        return np.where(self.owner == NOWHERE, elsewhere, values[self.owner])


@dataclass(frozen=True)
class _Grid:
    """Tokens that lie in lines and columns.

    Attributes:
        tokens: int [lines, columns].
        x, y: borders of its columns and of its lines, as shares of the picture's sides.
    """

    tokens: Array
    x: Array
    y: Array

    @property
    def area(self) -> float:
        return float((self.x[-1] - self.x[0]) * (self.y[-1] - self.y[0]))

    def overlap(self, other: _Grid) -> float:
        """As a share of the smaller."""
        wide = min(self.x[-1], other.x[-1]) - max(self.x[0], other.x[0])
        high = min(self.y[-1], other.y[-1]) - max(self.y[0], other.y[0])
        return float(max(wide, 0) * max(high, 0)) / min(self.area, other.area)


def places_from(
    pictures: Sequence[Image.Image], picture: Array, x: Array, y: Array, shown: str = ""
) -> Places:
    """Grids and views, from the middle of every token.

    Args:
        pictures: of the prompt, RGB.
        picture: int [tokens], which of them each token stands for.
        x, y: [tokens], middles as shares of its sides; nan where it lies nowhere.
        shown: see `Places`.
    """
    views = []
    # Of many pictures each is drawn smaller, so that all of them make one sheet.
    side = max(_NARROWEST, min(_SIDE, 2 * _SIDE // math.isqrt(len(pictures))))
    for number, image in enumerate(pictures):
        here = np.flatnonzero((picture == number) & ~np.isnan(x))
        layers: list[list[_Grid]] = []
        for grid in _grids(here, x, y):
            for layer in layers:
                if all(grid.overlap(other) <= _OVERLAP for other in layer):
                    layer.append(grid)
                    break
            else:
                layers.append([grid])
        pixels = _pixels(image, side)
        views += [View(number, pixels, _owners(layer, pixels)) for layer in layers]
    return Places(tuple(views), len(x), tuple(np.flatnonzero(np.isnan(x)).tolist()), shown)


def _grids(tokens: Array, x: Array, y: Array) -> list[_Grid]:
    """Tokens in their order: a line goes on to the right, and a grid down with the same columns.

    At the ends of a side of few pixels, neighbours lie in one place.
    """
    lines: list[list[int]] = []
    for token in tokens:
        last = lines[-1][-1] if lines else None
        if last is not None and x[token] > x[last] - _SAME and abs(y[token] - y[last]) < _APART:
            lines[-1].append(int(token))
        else:
            lines.append([int(token)])
    grids: list[list[list[int]]] = []
    for line in lines:
        above = grids[-1][-1] if grids else []
        if (
            len(above) == len(line)
            and np.abs(x[above] - x[line]).max() < max(_APART, 0.25 / len(line) ** 2)
            and y[line].mean() > y[above].mean() - _SAME
        ):
            grids[-1].append(line)
        else:
            grids.append([line])
    found = [np.array(grid) for grid in grids]
    return [_Grid(grid, _borders(x[grid].mean(0)), _borders(y[grid].mean(1))) for grid in found]


def _borders(middles: Array) -> Array:
    """Of tokens that lie evenly, as all do; of one alone, the whole side.

    What the outermost see of the picture may be a part of them, and so may lie further in.
    """
    count = len(middles)
    if count == 1:
        return np.array([0.0, 1.0])
    steps = np.diff(middles)
    step = steps[steps > 0.9 * steps.max()].mean()
    borders = np.median(middles) + step * (np.arange(count + 1) - count / 2)
    for edge in (0.0, 1.0):
        borders[np.abs(borders - edge) < step / 4] = edge
    clipped: Array = borders.clip(0, 1)
    return clipped


def _owners(grids: Sequence[_Grid], pixels: Array) -> Array:
    height, width, _ = pixels.shape
    owner = np.full((height, width), NOWHERE)
    across, down = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    for grid in grids:
        column = np.searchsorted(grid.x, across, "right") - 1
        line = np.searchsorted(grid.y, down, "right") - 1
        wide = np.flatnonzero((column >= 0) & (column < grid.tokens.shape[1]))
        high = np.flatnonzero((line >= 0) & (line < grid.tokens.shape[0]))
        owner[np.ix_(high, wide)] = grid.tokens[np.ix_(line[high], column[wide])]
    return owner


def _pixels(image: Image.Image, longest: int) -> Array:
    """A picture of the size that is drawn, [height, width, 3] in 0..1."""
    longer = max(image.size)
    size = tuple(max(_NARROWEST, round(side * longest / longer)) for side in image.size)
    small = image.convert("RGB").resize((size[0], size[1]), Image.Resampling.LANCZOS)
    return np.asarray(small, dtype=np.float64) / 255


def _sheet(parts: Sequence[Array], blank: Any) -> Array:
    """Parts [height, width, ...] in as square a sheet as can be, `blank` where there is none."""
    high = max(int(part.shape[0]) for part in parts)
    broad = max(int(part.shape[1]) for part in parts)

    def long(columns: int) -> tuple[int, int]:
        return max(columns * broad, math.ceil(len(parts) / columns) * high), -columns

    columns = min(range(1, len(parts) + 1), key=long)
    lines = [parts[n : n + columns] for n in range(0, len(parts), columns)]
    heights = [max(part.shape[0] for part in line) for line in lines]
    width = columns * broad + (columns - 1) * _GAP
    height = sum(heights) + (len(lines) - 1) * _GAP
    sheet = np.full((height, width, *parts[0].shape[2:]), blank, dtype=parts[0].dtype)
    top = 0
    for line, tall in zip(lines, heights, strict=True):
        for number, part in enumerate(line):
            left = number * (broad + _GAP)
            sheet[top : top + part.shape[0], left : left + part.shape[1]] = part
        top += tall + _GAP
    return sheet
