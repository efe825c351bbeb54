"""The grid of a sweep on the command line: lists of S, C or R, and tau."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from st3_cli import method_options as m
from st3_cli.options import option

GRID = "Grid"
FINALS = (0.01, 0.05, 0.1, 0.2)
"""C of the default grid, of any depth, where a list of R suits only some."""


def _list(what: str, read: Callable[[str], list[Any]]) -> Callable[[str], list[Any]]:
    def parse(text: str) -> list[Any]:
        return [value for part in text.split(",") for value in read(part.strip())]

    parse.__name__ = what
    return parse


def _whole(text: str) -> list[int]:
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"{text!r} is no whole number from 1 on: give e.g. 1,2,4")
    return [int(text)]


def _shares(text: str) -> list[float]:
    """0.05, 5% or a range 0.01:0.10:0.01."""
    parts = text.split(":")
    values = [m.share(part) for part in parts]
    if len(values) == 1:
        return values
    if len(values) != 3 or values[2] <= 0 or values[1] < values[0]:
        raise typer.BadParameter(f"{text!r}: write a range as first:last:step, e.g. 0.01:0.10:0.01")
    count = int((values[1] - values[0]) / values[2] + 1e-9) + 1
    return [round(values[0] + n * values[2], 9) for n in range(count)]


def _taus(text: str) -> list[int]:
    return [m.tau(text)]


StridesOption = Annotated[
    Any,
    option(
        GRID, "--strides", metavar="S,...", parser=_list("strides", _whole),
        help="Layers between one drop and the next.",
    ),
]  # fmt: skip
FinalKeepsOption = Annotated[
    Any,
    option(
        GRID, "--final-keep", metavar="C,...", parser=_list("shares", _shares),
        show_default=",".join(f"{share:.0%}" for share in FINALS),
        help="Shares of the visual tokens left in the last layer; R follows from each.",
    ),
]  # fmt: skip
RatiosOption = Annotated[
    Any,
    option(
        GRID, "--ratios", metavar="R,...", parser=_list("ratios", _shares),
        help="In place of C, shares of all visual tokens dropped every S layers; 1%:10%:1% is a "
        "range.",
    ),
]  # fmt: skip
TausOption = Annotated[
    Any,
    option(
        GRID, "--taus", metavar="TOKENS,...", parser=_list("taus", _taus),
        help="Generated tokens after which no visual token is left in any layer; none keeps them.",
    ),
]  # fmt: skip
PruneRatioOption = Annotated[
    Any,
    option(
        GRID, "--prune-ratio", metavar="P", parser=m.share,
        help="Share of the visual tokens dropped at layer 4.",
    ),
]  # fmt: skip
PeersOption = Annotated[
    str | None,
    option(
        GRID, "--methods", metavar="LIST",
        help="Other methods beside, such as fastv,vtw:k=6; or all. `st3 methods` lists them.",
    ),
]  # fmt: skip
BudgetTokensOption = Annotated[
    Any,
    option(
        GRID, "--budget-tokens", metavar="N,...", parser=_list("tokens", _whole),
        help="In place of the grid: these methods, each set to leave N visual tokens a layer.",
    ),
]  # fmt: skip
BesideOption = Annotated[
    str | None,
    option(
        GRID, "--beside", metavar="METHOD",
        help="One of them, beside which all others are put, question by question.",
    ),
]  # fmt: skip
