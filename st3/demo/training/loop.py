"""The training loop that the demo's stages share: seeds, log, checkpoints, resuming."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from st3.demo.training.optimiser import MasterAdamW

Step = Callable[[int, np.random.Generator], tuple[torch.Tensor, dict[str, float]]]

_STATE_EVERY = 250
_LOG_EVERY = 25


def run_stage(
    name: str,
    module: nn.Module,
    optimiser: MasterAdamW,
    step: Step,
    *,
    seed: int,
    folder: Path,
) -> None:
    """Train `module` for `optimiser.steps` steps of `step`, or from where it was cut off.

    The random numbers of a step depend on the seed, the stage and the step's number alone, so a
    resumed run is the run that was not interrupted. `folder` gets `NAME.state.pt` every 250
    steps and a line of averages in `log.jsonl` every 25.
    """
    state_file = folder / f"{name}.state.pt"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        module.load_state_dict(state["module"])
        optimiser.load_state_dict(state["optimiser"])
    stage_number = sum(map(ord, name))
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    started, first = time.monotonic(), optimiser.step_number
    while optimiser.step_number < optimiser.steps:
        number = optimiser.step_number
        loss, measures = step(number, np.random.default_rng([seed, stage_number, number]))
        loss.backward()
        optimiser.step()
        for key, value in measures.items():
            sums[key] = sums.get(key, 0.0) + value
            counts[key] = counts.get(key, 0) + 1
        done = optimiser.step_number
        if done % _LOG_EVERY == 0:
            means = {key: round(sums[key] / counts[key], 4) for key in sums}
            pace = (time.monotonic() - started) / (done - first)
            line = {
                "stage": name,
                "step": done,
                "of": optimiser.steps,
                "s_per_step": round(pace, 3),
            }
            with (folder / "log.jsonl").open("a") as log:
                log.write(json.dumps(line | means) + "\n")
            sums, counts = {}, {}
        if done % _STATE_EVERY == 0 or done == optimiser.steps:
            state = {"module": module.state_dict(), "optimiser": optimiser.state_dict()}
            temporary = state_file.with_suffix(".tmp")
            torch.save(state, temporary)
            os.replace(temporary, state_file)
