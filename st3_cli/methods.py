"""`st3 methods`: the trimming methods by stage, what they need, and where they come from."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Annotated, Any

import typer

from st3_cli import options as o
from st3_cli.console import err, print_json, print_table
from st3_cli.errors import UsageError

EXAMPLES = o.examples(
    "st3 methods --model qwen2.5-vl-7b",
    "st3 methods cdpruner",
    "st3 methods ./mine.py:Mine",
)
_SHARED = ("scorer", "kv_cache_dtype")
_BEFORE = (*_SHARED, "per", "positions", "tau", "annealing")
_MEANS = {
    "features": "the tokens themselves",
    "text": "the text's embeddings",
    "frames": "which frame a token is of",
    "grid": "the picture's shape",
    "patches": "features before the projector",
    "states": "what the layer returned",
    "embeddings": "the prompt's embeddings",
    "unrotated": "queries and keys without positions",
    "cells": "the picture's shape",
}


def methods(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", show_default=False,
            help="Explain one of them, or a class of your own, ./mine.py:Mine.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        o.option(
            o.MODEL, "--model", "-m", metavar="MODEL", show_default="none",
            help="Also say which fit a model: a short name, a Hub id or a folder.",
        ),
    ] = None,
    json: o.JsonOption = False,
    debug: o.DebugOption = False,
) -> None:  # fmt: skip
    """List the trimming methods by stage, what they need, and their papers; or explain one."""
    from st3.methods import METHODS, find_method
    from st3.methods.own import offered
    from st3.methods.scorers import SCORERS

    chosen, broken = {**METHODS} if name is None else {}, []
    for one in offered() if name is None else (name,):
        try:
            if name is None and one in METHODS:
                raise ValueError(f"the method {one!r} of another package is named as one of st3's")
            chosen[one] = find_method(one)
        except ValueError as error:
            if name is not None:
                raise UsageError(str(error)) from None
            broken.append(str(error))
    config = None if model is None else _config(model)
    found = [_described(one, cls, config) for one, cls in chosen.items()]
    for line in broken:
        err.print(f"left out: {line}", style="yellow", soft_wrap=True)
    if name is not None:
        print_json(found[0]) if json else _explain(found[0])
        return
    if json:
        print_json({"methods": found, "scorers": list(SCORERS), "broken": broken})
        return
    heads = ["name", "parameters", "what it does", "needs", "source"]
    if config is not None:
        heads.insert(4, f"fits {model}")
    for stage in sorted({one["stage"] for one in found}, key=lambda x: (_depth(x), x)):
        rows = [_row(one) for one in found if one["stage"] == stage]
        print_table(f"Methods that drop {stage}", heads, rows, wrap=True)
    print_table(
        "Every method takes scorer=NAME, what decides which tokens stay (or a method that drops "
        "before the decoder, whose order then decides everywhere), and kv_cache_dtype=NAME; a "
        "method may be a class in a file of your own, ./mine.py:Mine (docs/adding-a-method.md); "
        "those before the decoder also per=picture or prompt, positions=original or compact, "
        "tau=TOKENS",
        ("scorers",),
        [(", ".join(SCORERS),)],
        wrap=True,
    )


def _depth(stage: str) -> int:
    """Where in a model: the baseline first, then from the tower on."""
    words = ("nothing", "in the tower", "before", "in the decoder", "while")
    return max(number for number, word in enumerate(words) if word in stage)


def _config(model: str) -> Any:
    from st3.inference import configs, presets

    if model in presets.PRESETS:
        return presets.known_config(model)
    return configs.find_config(model)


def _described(name: str, cls: Any, config: Any) -> dict[str, Any]:
    text = inspect.getdoc(cls) or ""
    found = {
        "name": name,
        "parameters": {
            field.name: field.default or name if field.name == "scorer" else field.default
            for field in dataclasses.fields(cls)
        },
        "what": text.partition("\n")[0],
        "source": cls.source,
        "stage": cls.stage,
        "needs": list(getattr(cls, "needs", ())),
        "order": not getattr(cls, "is_set", False),
        "published": dict(getattr(cls, "published", {})),
        "differs": getattr(cls, "differs", ""),
        "text": text,
    }
    if config is not None:
        from st3.inference.suits import suits

        found["fits"], found["instead"] = suits(cls, config)
    return found


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    hidden = _BEFORE if one["needs"] else _SHARED
    parameters = ", ".join(
        f"{key}={'auto' if value is None and key != 'tau' else value}"
        for key, value in one["parameters"].items()
        if key not in hidden
    )
    cells = [one["name"], parameters or "-", one["what"], _needs(one) or "-", one["source"]]
    if "fits" in one:
        cells.insert(4, _fit(one))
    return tuple(cells)


def _fit(one: dict[str, Any]) -> str:
    word = "yes" if one["fits"] else "no"
    return f"{word}: {one['instead']}" if one["instead"] else word


def _needs(one: dict[str, Any]) -> str:
    said = []
    for need in one["needs"]:
        kind, _, layer = need.partition(" ")
        if kind == "attention":
            said.append(f"the class token's attention ({layer})")
        elif kind == "received":
            said.append(f"attention that patches get ({layer})")
        else:
            said.append(_MEANS[need])
    return ", ".join(said)


def _explain(one: dict[str, Any]) -> None:
    nested = "" if one["order"] else " (a set: choices for several budgets do not nest)"
    rows = [
        ("drops", one["stage"] + nested),
        ("source", one["source"]),
        ("needs", _needs(one)),
        ("parameters", ", ".join(f"{key}={value}" for key, value in one["parameters"].items())),
        *((f"{one['name']}:{key}", value) for key, value in one["published"].items()),
        ("ours differs", one["differs"]),
    ]
    if "fits" in one:
        rows.append(("fits", _fit(one)))
    text = " ".join(one["text"].split("Attributes:")[0].split())
    print_table(
        one["name"], ("", ""), [("what", text), *(row for row in rows if row[1])], wrap=True
    )
