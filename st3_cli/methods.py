"""`st3 methods`: the trimming methods by stage, what they need, and where they come from."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Annotated, Any

import typer

from st3_cli import options as o
from st3_cli.console import err, print_json, print_texts
from st3_cli.errors import UsageError

EXAMPLES = o.examples(
    "st3 methods --model qwen2.5-vl-7b",
    "st3 methods cdpruner",
    "st3 methods dpp:64",
    "st3 methods ./mine.py:Mine",
)
_SHARED = ("scorer", "kv_cache_dtype")
_DEPTHS = (32, 128)
"""Layers of a decoder: 7B's, and more than any has, for cuts that lie deep."""
_BEFORE = (*_SHARED, "per", "positions", "tau", "annealing")
_MEANS = {
    "features": "tokens",
    "text": "text",
    "frames": "frames",
    "videos": "videos, frame by frame",
    "grid": "picture's shape",
    "tiles": "tiles",
    "patches": "features before the projector",
    "states": "layer's output",
    "embeddings": "prompt's embeddings",
    "unrotated": "queries and keys without positions",
    "cells": "picture's shape",
}


def methods(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", show_default=False,
            help="Explain one of them, by its name or as it would be used; or ./mine.py:Mine.",
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
    from st3.methods import METHODS, find_method, split_spec
    from st3.methods.composed import split
    from st3.methods.own import offered
    from st3.methods.scorers import SCORERS

    config = None if model is None else _config(model)
    if name is not None and len(split(name)) > 1:
        one = _composed(name, config)
        print_json(one) if json else _explain(one, one["name"])
        return
    if name is not None:
        made = _made(name)
        one = _described(split_spec(name)[0], type(made), config, made)
        if split_spec(name)[1]:
            one["parameters"] = dataclasses.asdict(made)
        print_json(one) if json else _explain(one, name)
        return
    known, broken = {**METHODS}, []
    for theirs in offered():
        try:
            if theirs in METHODS:
                raise ValueError(
                    f"the method {theirs!r} of another package is named as one of st3's"
                )
            known[theirs] = find_method(theirs)
        except ValueError as error:
            broken.append(str(error))
    for line in broken:
        err.print(f"left out: {line}", style="yellow", soft_wrap=True)
    found = [_described(one, cls, config) for one, cls in known.items()]
    if json:
        print_json({"methods": found, "scorers": list(SCORERS), "broken": broken})
        return
    heads = ["name", "parameters", "what it does", "needs", "source"]
    if config is not None:
        heads.insert(4, f"fits {model}")
    stages = sorted({one["stage"] for one in found}, key=lambda one: (_depth(one), one))
    by_stage = [
        (
            f"Methods that drop {stage}",
            heads,
            [_row(one) for one in found if one["stage"] == stage],
        )
        for stage in stages
    ]
    note = (
        "Every method takes scorer=NAME, what decides which tokens stay (or a method that drops "
        "before the decoder, whose order then decides everywhere), and kv_cache_dtype=NAME; those "
        "before the decoder also keep=64 (tokens) or keep=25% (a share; keep=1 is one token, "
        "keep=1.0 all), per=picture or prompt, positions=original or compact, tau=TOKENS. A+B is "
        "one of these and, for what it lets in, one inside: visionzip:keep=50%+st3:tau=64. A "
        "method may be a class in a file of your own, ./mine.py:Mine (docs/adding-a-method.md)"
    )
    print_texts(*by_stage, (note, ("scorers",), [(", ".join(SCORERS),)]))


def _made(spec: str) -> Any:
    """The method, whose parameters at least one depth of a decoder allows."""
    from st3.methods import make_method

    refused: list[ValueError] = []
    try:
        made = make_method(spec)
        for layers in _DEPTHS:
            try:
                made.schedule(layers)
            except ValueError as error:
                refused.append(error)
        if len(refused) == len(_DEPTHS):
            raise refused[0]
    except ValueError as error:
        raise UsageError(str(error)) from None
    return made


def _depth(stage: str) -> int:
    """Where in a model: the baseline first, then from the tower on."""
    words = ("nothing", "in the tower", "before", "in the decoder", "while")
    return max(number for number, word in enumerate(words) if word in stage)


def _config(model: str) -> Any:
    from st3.inference import configs, presets

    if model in presets.PRESETS:
        return presets.known_config(model)
    return configs.find_config(model)


def _described(name: str, cls: Any, config: Any, made: Any = None) -> dict[str, Any]:
    """What is said of a class; whether it fits, as `made`, or with its defaults."""
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

        found["fits"], found["instead"] = suits(cls if made is None else lambda: made, config)
    return found


def _composed(spec: str, config: Any) -> dict[str, Any]:
    from st3.methods.composed import INSIDE

    made = _made(spec)
    parts = made.before, made.inside
    found = {
        "name": made.name,
        "parameters": {
            f"{part.name}.{field.name}": getattr(part, field.name)
            for part in parts
            for field in dataclasses.fields(part)
            if part is made.inside or field.name not in INSIDE
        },
        "what": f"{made.before.name}, and {made.inside.name} inside for what that lets in.",
        "source": made.source,
        "stage": made.stage,
        "needs": list(made.before.asks()),
        "order": not made.before.is_set,
        "published": {},
        "differs": made.before.differs,
        "text": " ".join(
            f"{part.name}: {(inspect.getdoc(part) or '').partition('Attributes:')[0]}"
            for part in parts
        ),
    }
    if config is not None:
        from st3.inference.suits import suits

        found["fits"], found["instead"] = suits(lambda: made, config)
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
            said.append(f"class token's attention ({layer})")
        elif kind == "received":
            said.append(f"attention patches get ({layer})")
        elif kind == "joint":
            said.append(f"class token's attention, heads as one ({layer})")
        elif kind == "keys":
            said.append(f"tower's keys ({layer})")
        else:
            said.append(_MEANS.get(need, need))
    return ", ".join(said)


def _explain(one: dict[str, Any], title: str) -> None:
    nested = "" if one["order"] else " (a set: choices for several budgets do not nest)"
    rows = [
        ("drops", one["stage"] + nested),
        ("source", one["source"]),
        ("needs", _needs(one)),
        ("parameters", ", ".join(f"{key}={value}" for key, value in one["parameters"].items())),
        *(
            (f"{one['name']}:{key}", f"{_keeps(one['name'], key)}{value}")
            for key, value in one["published"].items()
        ),
        ("ours differs", one["differs"]),
    ]
    if "fits" in one:
        rows.append(("fits", _fit(one)))
    text = " ".join(one["text"].split("Attributes:")[0].split()).replace("*", "")
    print_texts((title, ("", ""), [("what", text), *(row for row in rows if row[1])]))


def _keeps(name: str, setting: str) -> str:
    """What a named setting of a method keeps, in words; nothing where it has no budget."""
    from st3.methods import make_method
    from st3.methods.selecting import Selecting

    method = make_method(f"{name}:{setting}")
    if not isinstance(method, Selecting):
        return ""
    budget = method.budget()
    if budget.adaptive:
        return "keeps as many as it finds: "
    kept = f"{budget.tokens} tokens" if budget.share is None else f"{budget.share:.3g} of all"
    spared = {"marks": " and the marks at the ends of lines", "pictures": ", still pictures whole"}
    return f"keeps {kept} of each {budget.per}{spared.get(budget.spares, '')}: "
