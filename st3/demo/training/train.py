"""Train the demo model: `python -m st3.demo.training --output FOLDER`.

Six stages: `tower` (windows of pictures) and `whole` (whole pictures); `language` and `counting`
(on codes, no pictures); `joint` (the trained tower, all visual tokens, trimmed by every method);
and `deep`, the same once the decoder has grown to its full depth. Each can be run alone with
--stage; `language` and `counting` need neither `tower` nor `whole` and can run beside them. An
interrupted run goes on where its last checkpoint was when the same command is given again.

On a small CPU, set MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=8000000000
MALLOC_TOP_PAD_=268435456 first: page faults cost more than arithmetic there.
"""

from __future__ import annotations

import enum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import nn

from st3.demo.language import vocabulary
from st3.demo.packaging import save
from st3.demo.scenes import Scene, sample_scene
from st3.demo.training.architecture import LAYERS, YOUNG_LAYERS, build_config, build_model
from st3.demo.training.codes import Codes
from st3.demo.training.growth import grow
from st3.demo.training.head_start import start_language
from st3.demo.training.joint_stage import JointStage
from st3.demo.training.language_stage import LanguageStage, codes_batch, words_batch
from st3.demo.training.loop import Step, run_stage
from st3.demo.training.optimiser import MasterAdamW
from st3.demo.training.tower_stage import TowerStage, random_windows, tower_batch


class Stage(enum.StrEnum):
    """The parts of the training, in order."""

    tower = "tower"
    whole = "whole"
    language = "language"
    counting = "counting"
    joint = "joint"
    deep = "deep"


# Stage -> optimiser steps, learning rate.
PLAN = {
    Stage.tower: (3000, 1.5e-3),
    Stage.whole: (900, 7e-4),
    Stage.language: (1300, 1.2e-3),
    Stage.counting: (1200, 8e-4),
    Stage.joint: (500, 5e-4),
    Stage.deep: (500, 3e-4),
}
WINDOWED = 0.87  # share of the tower stage on windows
WORDS_EVERY = 4  # in language and counting, every fourth step has no pictures (`words_batch`)
WORDS = 8  # scenes of such a step, for each picture of another step


def _scenes(rng: np.random.Generator, batch: int, dense: float) -> list[Scene]:
    """Scenes of 1-4 objects, a share `dense` of them with 6-9."""
    return [
        sample_scene(rng, objects=(6, 9) if rng.random() < dense else (1, 4)) for _ in range(batch)
    ]


class Training:
    """A model, its stages, and a folder of checkpoints."""

    def __init__(self, folder: Path, seed: int, batch: int, device: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.seed, self.batch, self.device = folder, seed, batch, device
        self.codes = Codes()
        young = build_model(build_config(vocabulary(), YOUNG_LAYERS), seed)
        start_language(young, self.codes)
        self.young = self._in_bf16(young)
        self.tower = TowerStage(self.young).to(device, torch.bfloat16)
        self.language = LanguageStage(self.young).to(device)

    def run(self, stage: Stage, steps: int) -> None:
        """Train one stage on top of what the folder holds of the stages before it.

        Raises:
            typer.BadParameter: a stage before it has not been trained.
        """
        module, step = self._prepare(stage, steps)
        optimiser = MasterAdamW(module.parameters(), lr=PLAN[stage][1], steps=steps)
        run_stage(stage.value, module, optimiser, step, seed=self.seed, folder=self.folder)

    def trained(self) -> Any:
        """The model as the last stage left it."""
        model, joint = self._grown()
        self._restore(Stage.deep, joint)
        return model

    def _prepare(self, stage: Stage, steps: int) -> tuple[nn.Module, Step]:
        if stage in (Stage.tower, Stage.whole):
            if stage is Stage.whole:
                self._restore(Stage.tower, self.tower)
            windowed = WINDOWED * steps if stage is Stage.tower else 0
            return self.tower, partial(self._see, windowed, 0.75 if windowed else 0.5)
        if stage in (Stage.language, Stage.counting):
            if stage is Stage.counting:
                self._restore(Stage.language, self.language)
            return self.language, partial(self._read, stage is Stage.counting)
        joint = JointStage(self.tower, self.language)
        if stage is Stage.joint:
            self._restore(Stage.whole, self.tower)
            self._restore(Stage.counting, self.language)
        else:
            self._restore(Stage.joint, joint)
            joint = self._grown()[1]
        return joint, partial(self._answer, joint)

    def _see(self, windowed: float, dense: float, number: int, rng: np.random.Generator) -> Any:
        batch = tower_batch(_scenes(rng, self.batch, dense), rng).to(self.device)
        windows = random_windows(rng, self.batch).to(self.device) if number < windowed else None
        return self.tower(batch, windows)

    def _read(self, complete: bool, number: int, rng: np.random.Generator) -> Any:
        words = number % WORDS_EVERY == WORDS_EVERY - 1
        if words:
            inputs = words_batch(_scenes(rng, WORDS * self.batch, 1.0), rng)
        else:
            scenes = _scenes(rng, self.batch, 0.0)
            inputs = codes_batch(self.codes, scenes, rng, complete=complete)
        loss, measures = self.language(*(x.to(self.device) for x in inputs))
        if words:
            measures = {"words": measures["answer"], "verdict": measures["right:relation"]}
        return loss, measures

    def _answer(self, joint: JointStage, number: int, rng: np.random.Generator) -> Any:
        return joint(_scenes(rng, self.batch, 0.0), rng)

    def _grown(self) -> tuple[Any, JointStage]:
        """The model with all its layers, answering as the young one does; and its loss."""
        model = self._in_bf16(grow(self.young, LAYERS))
        tower = TowerStage(model).to(self.device, torch.bfloat16)
        return model, JointStage(tower, LanguageStage(model).to(self.device))

    def _in_bf16(self, model: Any) -> Any:
        turns = model.model.language_model.rotary_emb
        speeds = turns.inv_freq.clone()
        model = model.to(self.device, torch.bfloat16)
        turns.inv_freq = speeds.to(self.device)  # fp32, as when it is loaded
        return model

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
) -> None:
    """Train the demo model on procedural scenes."""
    if threads:
        torch.set_num_threads(threads)
    training = Training(output, seed, batch, device)
    for each in [stage] if stage else Stage:
        training.run(each, max(1, round(PLAN[each][0] * scale)))
    if stage in (None, Stage.deep):
        save(training.trained(), output / "model")
        typer.echo(f"wrote {output / 'model'}")
