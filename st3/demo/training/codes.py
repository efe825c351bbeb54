"""What one visual token should say: a fixed code of colour, shape and place.

The tower and the projector learn to turn a patch into its code; the language model meanwhile
learns to read codes made straight from scenes, with no picture drawn. Both stages can therefore run
at the same time, and meet afterwards.
"""

from __future__ import annotations

import numpy as np
import torch

from st3.demo.scenes import CELL_GRID, CELLS, COLOURS, GRID, SHAPES, Scene
from st3.demo.training.architecture import WIDTH

_SCALE = 0.35
_FINE = 16  # directions for the place inside a cell
_COLOUR_IDS = {name: i for i, name in enumerate(COLOURS)}
_SHAPE_IDS = {name: i for i, name in enumerate(SHAPES)}


class Codes:
    """The code book, the same for every run.

    Rows of an orthogonal matrix are the meanings: each colour, each shape, "an object is here",
    "nothing is here", the three rows and columns of cells; the fine place is a few waves.
    """

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(20250)
        basis = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator))[0]
        basis = basis * WIDTH**0.5 * _SCALE
        parts = torch.split(
            basis, [len(COLOURS), len(SHAPES), 2, CELLS, CELLS, _FINE, WIDTH - 21 - _FINE]
        )
        self.colours, self.shapes, self.presence, self.rows, self.columns, fine, _ = parts
        place = torch.arange(GRID)
        cell = place // CELL_GRID
        frequencies = torch.tensor([0.13, 0.26, 0.52, 0.785])
        angles = place[:, None] * frequencies
        waves = torch.cat((angles.cos(), angles.sin()), dim=1)  # [24, 8]
        down = self.rows[cell] + 0.5 * waves @ fine[:8]
        across = self.columns[cell] + 0.5 * waves @ fine[8:]
        self.place = (down[:, None] + across[None, :]).flatten(0, 1)  # [576, WIDTH]

    def to(self, device: torch.device) -> Codes:
        """Move to `device`, in place."""
        for name, value in vars(self).items():
            setattr(self, name, value.to(device))
        return self

    def encode(
        self,
        colour: torch.Tensor,
        shape: torch.Tensor,
        coverage: torch.Tensor,
        place: torch.Tensor,
    ) -> torch.Tensor:
        """Codes [..., WIDTH] of patches: colour and shape ids, covered share, index in 0..575.

        Ids are arbitrary where the coverage is 0.
        """
        nothing, something = self.presence
        thing = self.colours[colour] + self.shapes[shape] + something
        share = coverage.unsqueeze(-1)
        code: torch.Tensor = self.place[place] + share * thing + (1 - share) * nothing
        return code


def labels(scene: Scene, owner: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Colour and shape ids [576] of each patch's object, 0 where there is none."""
    colours = [_COLOUR_IDS[o.colour] for o in scene.objects] + [0]
    shapes = [_SHAPE_IDS[o.shape] for o in scene.objects] + [0]
    flat = owner.reshape(-1)
    return torch.tensor(np.array(colours)[flat]), torch.tensor(np.array(shapes)[flat])
