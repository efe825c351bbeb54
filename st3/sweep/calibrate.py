"""Fit FitPrune's table to a model: `python -m st3.sweep.calibrate --mean 40% --output table.json`.

The model reads some questions untrimmed; in every layer attention that each visual token gets, from
the words behind the picture and from visual tokens, is summed up. No labels are needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from st3.batch.collating import collated
from st3.batch.leaving import on_device
from st3.batch.preparing import Preparer, padding
from st3.batch.row import Row
from st3.engine.trim import trim
from st3.families.base import visual_mask
from st3.families.parts import find_parts
from st3.files import write_text
from st3.inference.fitting import room_of
from st3.inference.loading import load
from st3.methods.inside.fitprune import fitted_keeps
from st3.methods.scorers import LayerView
from st3.sweep.questions import Question, demo_questions, folder_questions


def masses_of(
    model: Any, prompts: Iterable[dict[str, Any]]
) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Of each layer, of each prompt: attention from words and among visual tokens, float [N] both.

    Args:
        model: that fits.
        prompts: inputs of one prompt each, with a picture.
    """
    parts = find_parts(model)
    found: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in parts.layers]
    for inputs in prompts:
        visual = visual_mask(parts.visual_ids, inputs["input_ids"])
        trailing = int(visual[0].flip(0).long().argmax())
        ordinal = (visual.long().cumsum(1) - 1).clamp_min(0)

        def see(
            layer: int, query: Any, key: Any, scaling: float, valid: Any,
            visual: torch.Tensor = visual, trailing: int = trailing,
            ordinal: torch.Tensor = ordinal,
        ) -> None:  # fmt: skip
            view = LayerView(
                query, key, scaling, valid, visual, ordinal, int(visual.sum()), trailing
            )
            here = visual[0]
            words = view.received(view.asks().float(), "max")[0, here]
            among = view.received(visual.float(), "max")[0, here]
            found[layer - 1].append((words.cpu(), among.cpu()))

        with torch.no_grad(), trim(model, "none") as session:
            session.observer = see
            model(**inputs, use_cache=False)
    return found


def _inputs(model: Any, processor: Any, questions: Iterable[Question]) -> Iterator[dict[str, Any]]:
    prepare = Preparer(processor, room_of(model))
    for number, asked in enumerate(questions):
        row = prepare(Row(number, asked.prompt, (asked.picture,), number=number))
        if row.problem is not None:
            raise ValueError(f"{asked.label}: {row.problem}")
        yield on_device(collated((row.inputs,), padding(processor)), model)


def main(
    output: Annotated[Path, typer.Option("--output", "-o", help="The table, a JSON file.")],
    model: Annotated[str, typer.Option("--model", "-m")] = "demo",
    mean: Annotated[str, typer.Option(help="Visual tokens that stay, over all layers.")] = "40%",
    images: Annotated[
        Path | None, typer.Option(help="A folder of pictures; the demo has scenes of its own.")
    ] = None,
    prompt: Annotated[str, typer.Option(help="Asked of each.")] = "Describe the picture.",
    scenes: Annotated[int, typer.Option(help="How many of the demo's scenes.")] = 180,
    seed: Annotated[int, typer.Option(help="Of the scenes.")] = 1,
    device: Annotated[str, typer.Option()] = "auto",
) -> None:
    """Fit a table and write it."""
    try:
        share = float(mean[:-1]) / 100 if mean.endswith("%") else float(mean)
        if images is not None:
            asked, _ = folder_questions(images, prompt)
        elif model == "demo":
            asked = demo_questions(scenes, seed)
        else:
            raise ValueError("only the demo has pictures of its own: give --images")
        live, processor = load(model, device=device)
        keeps = fitted_keeps(masses_of(live, _inputs(live, processor, asked)), share)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    document = {"keeps": keeps, "model": model, "mean": share, "questions": len(asked)}
    write_text(output, json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
