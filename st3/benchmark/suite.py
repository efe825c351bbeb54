"""Which cells there are, in the order of what they tell for their time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from st3.benchmark.cells import Rows, ceilings, equal_memory, timed, where_time_goes
from st3.benchmark.lab import Lab
from st3.methods import make_method
from st3.profiling.runs import STOCK, Variant

STATIC = "stock, static + compiled"
GRAPHS = " + graphs"


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

    main = variants("stock", "none+", "st3", "st3+", "fastv+")
    for model in ("7b", "13b"):
        for batch in batches:
            add(
                f"table/{model}/{batch}", timed, model,
                main if model == "7b" else variants("stock", "none+", "st3+", "fastv+"),
                batch=batch, new=new, rounds=rounds,
            )  # fmt: skip
    plans = variants("stock", "none", "st3", "st3+")
    add("cudnn/7b/1", timed, "7b", plans, new=short, rounds=1, cudnn=True)
    against = {**variants("stock", "st3+"), STATIC: Variant(static=True)}
    add("static/7b/1", timed, "7b", against, new=short, rounds=rounds)
    for gigabytes in (1, 1.5, 2) if tiny else (24, 40, 80):
        add(
            f"memory/7b/{gigabytes}", equal_memory, "7b", variants("stock", "st3+"),
            budget=gigabytes * 1e9, new=short[0], rounds=rounds,
        )  # fmt: skip
    long = partial(timed, variants=variants("stock", "none+", "st3+", "fastv+"), new=short,
                   cudnn=True)  # fmt: skip
    for pictures in (2 if tiny else 5, many):
        add(f"long/7b/{pictures}", long, "7b", pictures=pictures, rounds=rounds)
    for batch in batches[:2]:
        add(f"operators/7b/{batch}", where_time_goes, "7b", ("none", "st3"), batch=batch)
    rest = variants("stock", "none", "pvtp+", "vta+", "fastv:r=75%+", "vtw+", "pyramiddrop+",
                    "random+", "fastv")  # fmt: skip
    add(f"methods/7b/{batches[1]}", timed, "7b", rest, batch=batches[1], new=short, rounds=rounds)
    add(f"static/7b/{batches[1]}", timed, "7b", against, batch=batches[1], new=short,
        rounds=rounds)  # fmt: skip
    return found


def variants(*specs: str) -> dict[str, Variant]:
    """`stock`, methods, and with a + behind it a method whose decode steps are recorded."""
    found = {}
    for spec in specs:
        if spec == STOCK:
            found[spec] = Variant()
            continue
        method, graphs = spec.removesuffix("+"), spec.endswith("+")
        found[method + GRAPHS * graphs] = Variant(make_method(method), cuda_graphs=graphs)
    return found
