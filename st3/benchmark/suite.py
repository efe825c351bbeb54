"""What a suite is: cells with names that stay, in the order of what they tell for their time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from st3.benchmark.cells import Rows, ceilings, exact
from st3.benchmark.lab import Lab
from st3.methods import make_method
from st3.profiling.runs import COMPILED_STOCK, STOCK, Variant

PROVEN = ("demo", "7b", "qwen2.5-vl-7b", "qwen3-vl-8b", "gemma3-12b")
"""Models, or shapes of them made small, on which every suite is held against the oracles."""
GRAPHS, COMPILED = " + graphs", " + compiled"


@dataclass(frozen=True)
class Cell:
    """A name that stays, since finished cells are known by it; and what makes its rows."""

    name: str
    measure: Callable[[Lab], Rows]


class Suite:
    """Cells as they are added.

    Attributes:
        cells: in their order.
    """

    def __init__(self) -> None:
        self.cells: list[Cell] = []

    def add(self, name: str, kind: Callable[..., Rows], *arguments: Any, **more: Any) -> None:
        """A cell that calls `kind(lab, *arguments, **more)`."""

        def measure(lab: Lab) -> Rows:
            return kind(lab, *arguments, **more)

        self.cells.append(Cell(name, measure))


def begun(*, tiny: bool) -> Suite:
    """How all begin: whether this device is right, and what it could do."""
    suite = Suite()
    for dtype in ("float32", "bfloat16", "float16"):
        suite.add(f"exact/{dtype}", exact, PROVEN[1:2] if tiny else PROVEN, dtype=dtype,
                  new=4 if tiny else 12)  # fmt: skip
    suite.add("ceilings", ceilings)
    return suite


def chosen(cells: Sequence[Cell], beginnings: str) -> list[Cell]:
    """Those whose names begin so, such as `table/13b,long`, in that order; all for an empty text.

    Raises:
        ValueError: none does.
    """
    parts = [part.strip() for part in beginnings.split(",")]
    found = [*dict.fromkeys(x for part in parts for x in cells if x.name.startswith(part))]
    if not found:
        names = ", ".join(cell.name for cell in cells)
        raise ValueError(f"no cell's name begins with {beginnings!r}; there are: {names}")
    return found


def variants(*specs: str) -> dict[str, Variant]:
    """`stock`, and methods: plain, with a + behind them recorded, with a * also compiled.

    With a ~ they are compiled and not recorded, as on a CPU; `stock~` is stock's own static cache,
    compiled by transformers.
    """
    found = {}
    for spec in specs:
        name, how = spec.rstrip("+*~"), spec[-1]
        if name == STOCK:
            found[COMPILED_STOCK if how == "~" else STOCK] = Variant(static=how == "~")
            continue
        graphs, compiler = how in "+*", "inductor" if how in "*~" else "off"
        label = name + GRAPHS * graphs + COMPILED * (compiler != "off")
        found[label] = Variant(make_method(name), graphs, compiler)
    return found
