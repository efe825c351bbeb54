"""Stage `tower` of the demo's training: the vision tower and the projector learn to see.

On dense pictures, each patch is asked for its code (mean squared error after the projector) and,
through two linear heads that are thrown away afterwards, for the colour and the shape of the object
that covers it. Patches that an object covers by less than half are left out of the heads' loss.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, fields

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from st3.demo.scenes import (
    CELL_GRID,
    CELLS,
    COLOURS,
    GRID,
    PICTURE_SIZE,
    SHAPES,
    Scene,
    render,
)
from st3.demo.training.architecture import WIDTH
from st3.demo.training.codes import Codes, labels


@dataclass(frozen=True)
class TowerBatch:
    """Pictures [B, 3, 192, 192] and per patch [B, 576]: colour, shape, coverage."""

    pixels: torch.Tensor
    colour: torch.Tensor
    shape: torch.Tensor
    coverage: torch.Tensor

    def to(self, device: str) -> TowerBatch:
        """The same on `device`."""
        return TowerBatch(*(getattr(self, field.name).to(device) for field in fields(self)))


def normalise(picture: Image.Image) -> torch.Tensor:
    """Pixels [3, 192, 192] as the packaged image processor makes them."""
    array = np.asarray(picture, dtype=np.float32) / 255
    array = (array - np.array(OPENAI_CLIP_MEAN)) / np.array(OPENAI_CLIP_STD)
    return torch.tensor(array, dtype=torch.float32).permute(2, 0, 1)


def disturb(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Now and then what other people's pictures went through: resampling, JPEG."""
    if rng.random() < 0.35:
        size = round(64 * 6 ** rng.random())
        filters = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
        chosen = filters[int(rng.integers(3))]
        picture = picture.resize((size, size), chosen)
        picture = picture.resize((PICTURE_SIZE, PICTURE_SIZE), Image.Resampling.BICUBIC)
    if rng.random() < 0.2:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=int(rng.integers(40, 95)))
        picture = Image.open(buffer).convert("RGB")
    return picture


def tower_batch(scenes: list[Scene], rng: np.random.Generator) -> TowerBatch:
    """Draw the scenes and collect what each patch shows."""
    pixels, colours, shapes, coverages = [], [], [], []
    for scene in scenes:
        rendered = render(scene, rng)
        pixels.append(normalise(disturb(rendered.picture, rng)))
        colour, shape = labels(scene, rendered.owner)
        colours.append(colour)
        shapes.append(shape)
        coverages.append(torch.from_numpy(rendered.coverage).flatten())
    return TowerBatch(
        torch.stack(pixels), torch.stack(colours), torch.stack(shapes), torch.stack(coverages)
    )


class TowerStage(nn.Module):
    """The tower, the projector and the two heads, with the loss of this stage."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        super().__init__()
        tower = model.model.vision_tower
        self.tower = getattr(tower, "vision_model", tower)  # nested before transformers 5.13
        self.projector = model.model.multi_modal_projector
        self.heads = nn.Linear(WIDTH, len(COLOURS) + len(SHAPES))
        self.codes = Codes()

    def forward(
        self, batch: TowerBatch, windows: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the loss and this batch's measures.

        `windows` int64 [B, W, K] names the patches of W parts of each picture; the tower then
        sees each part alone. The tower's attention is local at first, so that little is lost,
        and a part of a quarter's size costs a sixteenth in attention.
        """
        features = self.features(batch.pixels.to(self.heads.weight.dtype), windows)
        colour, shape, coverage = batch.colour, batch.shape, batch.coverage
        place = torch.arange(GRID * GRID, device=colour.device).expand(len(colour), -1)
        whole = torch.ones_like(colour, dtype=torch.bool)
        if windows is not None:
            rows = torch.arange(len(windows))[:, None, None]
            colour, shape, coverage, place = (
                x[rows, windows].flatten(0, 1) for x in (colour, shape, coverage, place)
            )
            whole = (coverage == 0) | _cell_inside(place)
        codes = self.projector(features).float()
        wanted = self.codes.to(codes.device).encode(colour, shape, coverage, place)
        code_loss = F.mse_loss(codes[whole], wanted[whole]) / wanted.var()
        sure = (coverage >= 0.5) & whole
        logits = self.heads(features[sure]).float()
        colour_logits, shape_logits = logits.split([len(COLOURS), len(SHAPES)], dim=-1)
        colour_loss = F.cross_entropy(colour_logits, colour[sure])
        shape_loss = F.cross_entropy(shape_logits, shape[sure])
        loss = 2 * code_loss + 0.3 * colour_loss + shape_loss
        right = shape_logits.argmax(-1) == shape[sure]
        return loss, {
            "loss": loss.item(),
            "code": code_loss.item(),
            "colour": colour_loss.item(),
            "shape": shape_loss.item(),
            "shape_accuracy": right.float().mean().item(),
        }

    def features(self, pixels: torch.Tensor, windows: torch.Tensor | None = None) -> torch.Tensor:
        """The tower's last hidden states [B, 576, WIDTH], or [B W, K, WIDTH] of the windows."""
        embeddings = self.tower.embeddings
        position = embeddings.position_embedding.weight
        patches = embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2) + position[1:]
        if windows is not None:
            rows = torch.arange(len(windows))[:, None, None]
            patches = patches[rows, windows].flatten(0, 1)
        first = (embeddings.class_embedding + position[0]).expand(len(patches), 1, -1)
        hidden = self.tower.pre_layrnorm(torch.cat((first, patches), dim=1))
        features: torch.Tensor = self.tower.encoder(inputs_embeds=hidden).last_hidden_state
        return features[:, 1:]


def _cell_inside(place: torch.Tensor) -> torch.Tensor:
    """Which of the patches `place` [N, K] belong to a cell whose every patch is among the K."""
    cell = place // GRID // CELL_GRID * CELLS + place % GRID // CELL_GRID
    count = torch.zeros(len(place), CELLS * CELLS, dtype=torch.long, device=place.device)
    count.scatter_add_(1, cell, torch.ones_like(cell))
    return (count == CELL_GRID**2).gather(1, cell)


def random_windows(rng: np.random.Generator, size: int, parts: int = 4) -> torch.Tensor:
    """int64 [size, parts, 144]: 12 x 12 patches around a random cell each."""
    side = GRID // 2
    local = torch.arange(side)
    corners = []
    for _ in range(size * parts * 2):
        cell = int(rng.integers(CELLS))
        low = max(0, (cell + 1) * CELL_GRID - side)
        high = min(GRID - side, cell * CELL_GRID)
        corners.append(int(rng.integers(low, high + 1)))
    corner = torch.tensor(corners).view(size, parts, 2, 1, 1)
    windows = (corner[:, :, 0] + local[:, None]) * GRID + corner[:, :, 1] + local
    return windows.flatten(2)
