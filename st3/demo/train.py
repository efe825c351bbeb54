"""Train the demo model: `python -m st3.demo.train --output FOLDER`.

Six stages: `tower` (windows of pictures), `whole` (whole pictures), `language` and `counting` (on
codes, no pictures), `joint` (the trained tower, all visual tokens, trimmed by every method) and
`settle` (trimmed by attention). Each can be run alone with --stage; `language` does not need those
before it and can run at the same time. An interrupted run goes on where its last checkpoint was
when the same command is given again.

On a small CPU, set MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=8000000000
MALLOC_TOP_PAD_=268435456 first: page faults cost more than arithmetic there.
"""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import nn
from transformers import LlavaForConditionalGeneration

from st3.demo.architecture import build_config, build_model
from st3.demo.codes import Codes
from st3.demo.head_start import start_language
from st3.demo.joint_stage import JointStage
from st3.demo.language import vocabulary
from st3.demo.language_stage import LanguageStage, codes_batch
from st3.demo.loop import run_stage
from st3.demo.optimiser import MasterAdamW
from st3.demo.packaging import save
from st3.demo.scenes import Scene, sample_scene
from st3.demo.tower_stage import TowerStage, random_windows, tower_batch


class Stage(str, enum.Enum):
    """The parts of the training, in order."""

    tower = "tower"
    whole = "whole"
    language = "language"
    counting = "counting"
    joint = "joint"
    settle = "settle"


# Stage -> optimiser steps, learning rate.
PLAN = {
    Stage.tower: (3000, 1.5e-3),
    Stage.whole: (900, 7e-4),
    Stage.language: (1000, 1.2e-3),
    Stage.counting: (560, 8e-4),
    Stage.joint: (150, 3e-4),
    Stage.settle: (170, 4e-4),
}
WINDOWED = 0.87  # share of the tower stage on windows


def _scenes(rng: np.random.Generator, batch: int, dense: float) -> list[Scene]:
    """Scenes of 1-4 objects, a share `dense` of them with 6-9."""
    return [
        sample_scene(rng, objects=(6, 9) if rng.random() < dense else (1, 4)) for _ in range(batch)
    ]


def _see_as(model: Any, folder: Path) -> None:
    """Give `model` the tower and the projector of the model in `folder`."""
    other: Any = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    for part in ("vision_tower", "multi_modal_projector"):
        getattr(model.model, part).load_state_dict(getattr(other.model, part).state_dict())


class Training:
    """A model, its stages, and a folder of checkpoints."""

    def __init__(
        self, folder: Path, seed: int, batch: int, device: str, start: Path | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.seed, self.batch, self.device = folder, seed, batch, device
        self.start = start
        model: Any = build_model(build_config(vocabulary()), seed)
        start_language(model, Codes())
        if start is not None:
            _see_as(model, start)
        turns = model.model.language_model.rotary_emb
        speeds = turns.inv_freq.clone()
        self.model = model.to(device, torch.bfloat16)
        turns.inv_freq = speeds.to(device)  # fp32, as when it is loaded
        self.tower = TowerStage(self.model).to(device, torch.bfloat16)
        self.language = LanguageStage(self.model).to(device)
        self.joint = JointStage(self.tower, self.language)

    def run(self, stage: Stage, steps: int) -> None:
        """Train one stage on top of what the folder holds of the stages before it."""
        if stage is Stage.whole and self.start is None:
            self._restore(Stage.tower, self.tower)
        if stage is Stage.counting:
            self._restore(Stage.language, self.language)
        if stage is Stage.joint:
            self._restore(Stage.whole, self.tower)
            self._restore(Stage.counting, self.language)
        if stage is Stage.settle:
            self._restore(Stage.joint, self.joint)
        modules: dict[Stage, nn.Module] = {
            Stage.tower: self.tower,
            Stage.whole: self.tower,
            Stage.language: self.language,
            Stage.counting: self.language,
            Stage.joint: self.joint,
            Stage.settle: self.joint,
        }
        module = modules[stage]
        module.requires_grad_(True)
        if module is self.joint:
            self.joint.freeze_tower()
        optimiser = MasterAdamW(module.parameters(), lr=PLAN[stage][1], steps=steps)
        codes = Codes()

        def step(number: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
            result: Any
            if module is self.joint:
                last = stage is Stage.settle
                result = self.joint(_scenes(rng, self.batch, 0.0), rng, by_attention=last)
            elif module is self.language:
                complete = stage is Stage.counting
                inputs = codes_batch(codes, _scenes(rng, self.batch, 0.0), rng, complete=complete)
                result = self.language(*(x.to(self.device) for x in inputs))
            else:
                dense = 0.75 if stage is Stage.tower else 0.5
                batch = tower_batch(_scenes(rng, self.batch, dense), rng).to(self.device)
                windowed = stage is Stage.tower and number < WINDOWED * steps
                windows = random_windows(rng, self.batch).to(self.device) if windowed else None
                result = self.tower(batch, windows)
            loss, measures = result
            return loss, measures

        run_stage(stage.value, module, optimiser, step, seed=self.seed, folder=self.folder)

    def _restore(self, stage: Stage, module: nn.Module) -> None:
        file = self.folder / f"{stage.value}.state.pt"
        if not file.exists():
            raise typer.BadParameter(f"{file} is missing: train the stage {stage.value!r} first")
        module.load_state_dict(
            torch.load(file, map_location=self.device, weights_only=True)["module"]
        )


def main(
    output: Annotated[Path, typer.Option(help="Checkpoints, log.jsonl, and in the end model/.")],
    stage: Annotated[Stage | None, typer.Option(help="Only this one. [all]")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Pictures a step.")] = 8,
    scale: Annotated[float, typer.Option(min=0, help="Steps, as a multiple of the default.")] = 1.0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(min=0, help="CPU threads. [torch's choice]")] = 0,
    start: Annotated[
        Path | None,
        typer.Option(help="See as the model in this folder does: without the stage tower."),
    ] = None,
) -> None:
    """Train the demo model on procedural scenes."""
    if threads:
        torch.set_num_threads(threads)
    training = Training(output, seed, batch, device, start)
    stages = [each for each in Stage if start is None or each is not Stage.tower]
    for each in [stage] if stage else stages:
        training.run(each, max(1, round(PLAN[each][0] * scale)))
    if stage in (None, Stage.settle):
        save(training.model, output / "model")
        typer.echo(f"wrote {output / 'model'}")


if __name__ == "__main__":
    typer.run(main)
