"""Stages `joint` and `deep` of the demo's training: answers about what the trained tower sees.

Pictures now, and all 576 visual tokens, most batches under `random_dropping`, so that the answers
survive trimming. The tower stays frozen, the projector and the decoder learn.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from st3.demo.scenes import GRID, Scene, render
from st3.demo.training.dropping import random_dropping
from st3.demo.training.language_stage import LanguageStage
from st3.demo.training.packing import MORE_COUNTS, pack, questions
from st3.demo.training.tower_stage import TowerStage, disturb, normalise


class JointStage(nn.Module):
    """The whole model with the loss of `LanguageStage`."""

    def __init__(self, tower: TowerStage, language: LanguageStage) -> None:
        super().__init__()
        self.seeing = tower
        self.language = language
        tower.requires_grad_(False)
        tower.projector.requires_grad_(True)

    def forward(
        self, scenes: list[Scene], rng: np.random.Generator
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Draw, look and ask; returns the loss and this batch's measures."""
        rendered = [render(scene, rng) for scene in scenes]
        pixels = torch.stack([normalise(disturb(r.picture, rng)) for r in rendered])
        device = self.language.head.weight.device
        with torch.no_grad():
            features = self.seeing.features(pixels.to(device, self.language.head.weight.dtype))
        dropping = random_dropping(rng, len(self.language.decoder.layers))
        result: tuple[torch.Tensor, dict[str, float]] = self.language(
            self.seeing.projector(features),
            torch.arange(GRID * GRID, device=device).expand(len(scenes), -1),
            torch.stack([torch.from_numpy(r.owner).flatten() for r in rendered]).to(device),
            torch.stack([torch.from_numpy(r.coverage).flatten() for r in rendered]).to(device),
            pack([questions(scene, rng, MORE_COUNTS) for scene in scenes], rng).to(device),
            dropping,
        )
        loss, measures = result
        kind = "keep all" if dropping is None else dropping.name
        return loss, measures | {f"answer, {kind}": measures["answer"]}
