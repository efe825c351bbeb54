"""`st3 models`: is it for my model; the families that are proven, and names that stand for one."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import Annotated

import typer

from st3_cli import options as o
from st3_cli.console import aside, print_answer, print_json, print_texts

EXAMPLES = o.examples(
    "st3 models",
    'st3 models "Qwen2.5-VL"',
    "st3 models mllama",
    "st3 models ./my-checkpoint",
)


def families(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A family as you call it, a short name, a folder or a Hub id: can it be trimmed?",
            show_default=False,
        ),
    ] = None,
    json: o.JsonOption = False,
    debug: o.DebugOption = False,
) -> None:
    """Say whether a model can be trimmed; without one, list the families that are proven."""
    if model is not None:
        _say(model, json)
        return
    from st3.families.examples import EXAMPLES as CHECKPOINTS
    from st3.families.proven import PROVEN
    from st3.inference.checkpoints import HUB_IDS

    found = [
        {"family": family, "text_models": list(texts), "example": CHECKPOINTS.get(family)}
        for family, texts in PROVEN.items()
    ]
    if json:
        print_json({"families": found, "names": HUB_IDS})
        return
    title = "Families that equal stock untrimmed, and an oracle trimmed, on tiny random models"
    proven = [(family, CHECKPOINTS.get(family, "-")) for family in PROVEN]
    print_texts(
        (title, ("family", "for example"), proven),
        ("Short names", ("name", "model"), list(HUB_IDS.items())),
    )
    aside(
        "Other families are judged by their models: st3 models NAME, or docs/models.md, says which "
        "fit and which do not."
    )


def _say(model: str, json: bool) -> None:
    from st3.inference.verdict import verdict

    found = verdict(model)
    if json:
        print_json({"model": model} | asdict(found))
        return
    print_answer(f"{model}: {'works' if found.proven else 'fits'}\n")
    aside(f"family {found.family}, with the text model {' or '.join(found.text_models)}")
    shape = shlex.quote(found.shape or found.example or "CHECKPOINT")
    if found.proven:
        aside("an oracle has proven it, on tiny random models;")
    else:
        aside("st3 finds the parts that it needs; no oracle has proven it;")
    aside(f"on a checkpoint: st3 verify {shape}")
    if found.layers:
        aside(_kept(found.layers, shape))
    aside(f"compute, memory, time: st3 profile --model {shape}")


def _kept(layers: int, shape: str) -> str:
    from st3.methods import make_method

    try:
        keep = make_method("st3").schedule(layers).mean_keep
    except ValueError as error:
        return f"st3 with its defaults does not go with {layers} layers: {error}"
    return f"st3 keeps {keep:.0%} of {shape}'s visual tokens, mean over its {layers} layers"
