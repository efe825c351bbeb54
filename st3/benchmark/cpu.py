"""The suite for a machine without a GPU: the demo, and `small`, a shape of 7B's depth.

Sized for two cores: most of it in nine minutes there, the last cells with more.
"""

from __future__ import annotations

from functools import partial

from st3.benchmark.cells import equal_memory, timed, timeline, where_time_goes
from st3.benchmark.suite import Cell, begun, variants


def cells(*, tiny: bool = False) -> list[Cell]:
    """The suite; `tiny` has the same cells but one, with less in them, and compiles nothing."""
    some = 2 if tiny else 8
    short, long = ((3,), (4,)) if tiny else ((64,), (256,))
    rounds = 1 if tiny else 2
    suite = begun(tiny=tiny)
    compiled = [] if tiny else ["st3~"]
    main = variants("stock", "none", "st3", *compiled, *([] if tiny else ["fastv"]))

    def table(model: str, batch: int, new: tuple[int, ...]) -> None:
        suite.add(f"table/{model}/{batch}/{new[0]}", timed, model, main, batch=batch, new=new,
                  rounds=rounds, go_on=True)  # fmt: skip

    if not tiny:
        table("demo", 1, short)
    table("small", 1, short)
    suite.add("static/small/1", timed, "small",
              variants("stock", "none", "st3", *([] if tiny else ["st3~", "stock~"])), new=short,
              rounds=rounds, go_on=True)  # fmt: skip
    rest = [] if tiny else [
        "none", "pvtp", "vta", "st3", "fastv", "fastv:r=75%", "vtw", "pyramiddrop",
    ]  # fmt: skip
    suite.add("methods/demo/1", timed, "demo", variants("stock", *rest, "random"), new=short,
              rounds=rounds)  # fmt: skip
    table("small", some, short)
    suite.add("timeline/small/1", timeline, "small", variants("stock", "st3"), batch=1)
    suite.add("operators/small/1", where_time_goes, "small",
              variants("stock", *([] if tiny else ["none", "st3"])), batch=1)  # fmt: skip
    suite.add("memory/small/4", equal_memory, "small", variants("stock", "st3"), budget=4e9,
              new=short[0])  # fmt: skip
    far = partial(timed, variants=variants("stock", "none", "st3"), new=short)
    suite.add("long/small/5", far, "small", pictures=2 if tiny else 5, rounds=1)
    table("small", 1, long)
    suite.add("long/small/28", far, "small", pictures=3 if tiny else 28, rounds=1)
    return suite.cells
