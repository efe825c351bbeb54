"""Which cells there are, in the order of what they tell for their time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from st3.benchmark.cells import Rows, ceilings, equal_memory, timed, where_time_goes
from st3.benchmark.lab import Lab
from st3.methods import make_method
from st3.profiling.runs import COMPILED_STOCK, STOCK, Variant

FAMILIES = {
    "qwen2.5-vl-7b": [(2240, 1400), (4928, 2773)],
    "qwen3-vl-8b": [(2560, 1600), (5440, 3072)],
}
"""Shapes, and pictures that become 4,000 and 16,320 visual tokens."""
GRAPHS, COMPILED = " + graphs", " + compiled"


@dataclass(frozen=True)
class Cell:
    """A name that stays, since finished cells are known by it; and what makes its rows."""

    name: str
    measure: Callable[[Lab], Rows]


def cells(*, tiny: bool = False) -> list[Cell]:
    """The suite; `tiny` has the same cells with less in them."""
    batches = (1, 2, 3) if tiny else (1, 8, 32)
    new = (4, 6) if tiny else (64, 256)
    short, rounds = new[:1], 1 if tiny else 2
    many = 3 if tiny else 28
    found = [Cell("ceilings", ceilings)]

    def add(name: str, kind: Callable[..., Rows], *arguments: Any, **more: Any) -> None:
        def measure(lab: Lab) -> Rows:
            return kind(lab, *arguments, **more)

        found.append(Cell(name, measure))

    def table(model: str, batch: int, *specs: str) -> None:
        add(f"table/{model}/{batch}", timed, model, variants(*specs), batch=batch, new=new,
            rounds=rounds)  # fmt: skip

    # Compiling takes minutes: a dry run leaves it out.
    against = variants("stock", "none+", "st3+", *([] if tiny else ["st3*"]))
    if not tiny:
        against[COMPILED_STOCK] = Variant(static=True)
    one, some, most = batches
    table("7b", one, "stock", "none+", "st3", "st3+", "fastv+")
    add(f"static/7b/{one}", timed, "7b", against, batch=one, new=short, rounds=rounds)
    for batch in (some, most):
        table("7b", batch, "stock", "none+", "st3+", "fastv+")
    for name, sizes in FAMILIES.items():
        for size in [(112, 84)] if tiny else sizes:
            add(f"family/{name}/{size[0]}x{size[1]}", timed, name,
                variants("stock", "none", "st3", "fastv"), picture=size, new=short, rounds=rounds,
                cudnn=True)  # fmt: skip
    for name, sizes in FAMILIES.items():
        size = (112, 84) if tiny else sizes[0]
        add(f"recorded/{name}/{size[0]}x{size[1]}", timed, name,
            variants("stock", "none+", "st3+"), picture=size, new=short,
            rounds=rounds)  # fmt: skip
    for batch in batches:
        table("13b", batch, "stock", "none+", "st3+")
    for gigabytes in (1, 2) if tiny else (80, 24, 40):
        add(
            f"memory/7b/{gigabytes}", equal_memory, "7b", variants("stock", "st3+"),
            budget=gigabytes * 1e9, new=short[0],
        )  # fmt: skip
    add(f"cudnn/7b/{one}", timed, "7b", variants("stock", "none", "st3", "st3+"), new=short,
        rounds=1, cudnn=True)  # fmt: skip
    long = partial(timed, variants=variants("stock", "none+", "st3+", "fastv+"), new=short,
                   cudnn=True)  # fmt: skip
    for pictures in (2 if tiny else 5, many):
        add(f"long/7b/{pictures}", long, "7b", pictures=pictures, rounds=rounds)
    for batch in (one, some):
        add(f"operators/7b/{batch}", where_time_goes, "7b",
            variants("stock", "none", "none+", "st3", "st3+"), batch=batch)  # fmt: skip
    rest = variants("stock", "none", "pvtp+", "vta+", "fastv:r=75%+", "vtw+", "pyramiddrop+",
                    "random+", "fastv")  # fmt: skip
    add(f"methods/7b/{some}", timed, "7b", rest, batch=some, new=short, rounds=rounds)
    add(f"static/7b/{some}", timed, "7b", against, batch=some, new=short,
        rounds=rounds)  # fmt: skip
    return found


def variants(*specs: str) -> dict[str, Variant]:
    """`stock`, and methods: plain, with a + behind them recorded, with a * also compiled."""
    found = {}
    for spec in specs:
        if spec == STOCK:
            found[spec] = Variant()
            continue
        graphs, compiler = spec[-1] in "+*", "inductor" if spec[-1] == "*" else "off"
        label = spec.rstrip("+*") + GRAPHS * graphs + COMPILED * (compiler != "off")
        found[label] = Variant(make_method(spec.rstrip("+*")), graphs, compiler)
    return found
