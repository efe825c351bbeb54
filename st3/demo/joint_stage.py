"""Stages `joint` and `refine` of the demo's training: answers about what the trained tower sees.

Pictures now, and all 576 visual tokens. In most batches the forward runs a random ST3 schedule, so
that the answers survive trimming; the tower stays frozen, the projector and the decoder learn.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from st3.demo.architecture import LAYERS
from st3.demo.language_stage import LanguageStage
from st3.demo.packing import QUESTIONS, pack, questions
from st3.demo.scenes import GRID, Scene, render
from st3.demo.tower_stage import TowerStage, disturb, normalise
from st3.schedule import pvtp_keeps, ratio_for

TRIMMED_SHARE = 0.7


def random_keep(rng: np.random.Generator) -> list[int] | None:
    """Visual tokens of each layer under a random ST3 schedule; None (keep all) in three of ten."""
    if rng.random() >= TRIMMED_SHARE:
        return None
    final = float(np.exp(rng.uniform(np.log(0.01), np.log(0.3))))
    stride = int(rng.integers(1, 4))
    keeps = pvtp_keeps(LAYERS, 0.5, ratio_for(LAYERS, 0.5, stride, final), stride)
    return [round(keep * GRID * GRID) for keep in keeps]


class JointStage(nn.Module):
    """The whole model with the loss of `LanguageStage`."""

    def __init__(self, tower: TowerStage, language: LanguageStage) -> None:
        super().__init__()
        self.seeing = tower
        self.language = language
        self.freeze_tower()

    def freeze_tower(self) -> None:
        """Leave the tower and its heads as they are; the projector learns."""
        self.seeing.requires_grad_(False)
        self.seeing.projector.requires_grad_(True)

    def forward(
        self,
        scenes: list[Scene],
        rng: np.random.Generator,
        mixture: Mapping[str, int] = QUESTIONS,
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Draw, look and ask; returns the loss and this batch's measures."""
        rendered = [render(scene, rng) for scene in scenes]
        pixels = torch.stack([normalise(disturb(r.picture, rng)) for r in rendered])
        device = self.language.head.weight.device
        with torch.no_grad():
            features = self.seeing.features(pixels.to(device, self.language.head.weight.dtype))
        result: tuple[torch.Tensor, dict[str, float]] = self.language(
            self.seeing.projector(features),
            torch.arange(GRID * GRID, device=device).expand(len(scenes), -1),
            torch.stack([torch.from_numpy(r.owner).flatten() for r in rendered]).to(device),
            torch.stack([torch.from_numpy(r.coverage).flatten() for r in rendered]).to(device),
            pack([questions(scene, rng, mixture) for scene in scenes], rng).to(device),
            random_keep(rng),
        )
        return result
