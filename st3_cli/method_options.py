"""How to trim, on the command line: the method, and the options of the ST3 family."""

from __future__ import annotations

import enum
import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from st3.methods.base import KV_CACHE_DTYPES
from st3.methods.schedule import ANNEALINGS
from st3_cli.options import METHOD, one_of, option

Annealing = enum.Enum("Annealing", {name: name for name in ANNEALINGS}, type=str)  # type: ignore[misc]


def share(text: str) -> float:
    """A share of the visual tokens: 0.07 or 7%."""
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no number: give a share such as 0.07 or 7%"
        ) from None
    if not 0 <= value <= 1:
        hint = f": did you mean {text}%?" if 1 < value <= 100 else " (0 % and 100 %)"
        raise typer.BadParameter(f"{text} is not between 0 and 1{hint}")
    return value


def tau(text: str) -> int:
    """A number of tokens, or 0 for `none`."""
    if text.lower() == "none":
        return 0
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"{text!r} is no whole number from 1 on: give e.g. 128, or none")
    return int(text)


def stride(text: str) -> int:
    """A number of layers, from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"{text!r} is no whole number of layers from 1 on: give e.g. 4")
    return int(text)


MethodOption = Annotated[
    str,
    option(
        METHOD, "--method", metavar="NAME",
        help="A method: st3, divprune:keep=64, visionzip+st3 (one before the decoder, one in it); "
        "`st3 methods` lists them. Or a class in a file of your own, ./mine.py:Mine.",
    ),
]  # fmt: skip
PruneRatioOption = Annotated[
    float | None,
    option(
        METHOD, "--prune-ratio", metavar="P", parser=share, show_default="50%",
        help="Share of the visual tokens dropped at layer 4, such as 50% or 0.5.",
    ),
]  # fmt: skip
StrideOption = Annotated[
    int | None,
    option(
        METHOD, "--stride", metavar="S", parser=stride,
        show_default="4, or a quarter of the depth",
        help="Layers between one drop and the next.",
    ),
]  # fmt: skip
RatioOption = Annotated[
    float | None,
    option(
        METHOD, "--ratio", metavar="R", parser=share, show_default="follows from C",
        help="Share of all visual tokens dropped every S layers.",
    ),
]  # fmt: skip
FinalKeepOption = Annotated[
    float | None,
    option(
        METHOD, "--final-keep", metavar="C", parser=share,
        show_default="1% for 32 layers, else 5%",
        help="Share of the visual tokens left in the last layer; in place of R.",
    ),
]  # fmt: skip
TauOption = Annotated[
    int | None,
    option(
        METHOD, "--tau", metavar="TOKENS", parser=tau, show_default="128",
        help="Generated tokens after which no visual token is left in any layer; none keeps them.",
    ),
]  # fmt: skip
AnnealingOption = Annotated[
    Annealing | None,
    option(
        METHOD, "--annealing", metavar="FORM", show_default="cosine",
        help=f"How visual tokens leave on the way to tau: {one_of(Annealing)}.",
    ),
]  # fmt: skip
ScorerOption = Annotated[
    str | None,
    option(
        METHOD, "--scorer", metavar="NAME", show_default="last-token",
        help="What decides which tokens stay: last-token, prompt, random, ...; `st3 methods` "
        "lists them.",
    ),
]  # fmt: skip
KvCacheOption = Annotated[
    str | None,
    option(
        METHOD, "--kv-cache-dtype", metavar="NAME", show_default="auto",
        help=f"How the KV cache holds what is left: {', '.join(KV_CACHE_DTYPES)}.",
    ),
]  # fmt: skip
SettingsOption = Annotated[
    Path | None,
    option(
        METHOD, "--settings", metavar="FILE.json",
        help="The method that `st3 sweep --budget` chose; in place of the options above.",
    ),
]  # fmt: skip


Given = Mapping[str, Any]
"""The method's options that were given, as `takes_method_options` collects them."""
NOTHING: Given = {}
_METHOD_OPTIONS = {
    "prune_ratio": PruneRatioOption,
    "stride": StrideOption,
    "ratio": RatioOption,
    "final_keep": FinalKeepOption,
    "tau": TauOption,
    "annealing": AnnealingOption,
    "scorer": ScorerOption,
    "kv_cache_dtype": KvCacheOption,
}


def takes_method_options(command: Callable[..., None]) -> Callable[..., None]:
    """Put the ST3 family's options in the place of a command's parameter `given`.

    The command gets those that were given, by name.
    """
    signature = inspect.signature(command, eval_str=True)
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if parameter.name != "given":
            parameters.append(parameter)
            continue
        parameters += [
            parameter.replace(name=name, default=None, annotation=annotation)
            for name, annotation in _METHOD_OPTIONS.items()
        ]

    @functools.wraps(command)
    def call(**values: Any) -> None:
        asked = {name: values.pop(name) for name in _METHOD_OPTIONS}
        command(**values, given={name: x for name, x in asked.items() if x is not None})

    call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call
