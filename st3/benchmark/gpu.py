"""The suite for a GPU: true shapes of 7B and 13B, and of the newer families."""

from __future__ import annotations

from functools import partial

from st3.benchmark.cells import equal_memory, timed, timeline, where_time_goes
from st3.benchmark.suite import Cell, begun, variants

FAMILIES = {
    "qwen2.5-vl-7b": [(2240, 1400), (4928, 2773)],
    "qwen3-vl-8b": [(2560, 1600), (5440, 3072)],
    "llava-next-7b": [(672, 672)],
}
"""Shapes, and pictures: of the Qwens they become 4,000 and 16,320 visual tokens, of LLaVA-NeXT
2,928: five tiles, and a mark at the end of each line."""


def cells(*, tiny: bool = False) -> list[Cell]:
    """The suite; `tiny` has the same cells with less in them."""
    batches = (1, 2, 3) if tiny else (1, 8, 32)
    new = (4, 6) if tiny else (64, 256)
    short, rounds = new[:1], 1 if tiny else 2
    many = 3 if tiny else 28
    suite = begun(tiny=tiny)

    def table(model: str, batch: int, *specs: str) -> None:
        suite.add(f"table/{model}/{batch}", timed, model, variants(*specs), batch=batch, new=new,
                  rounds=rounds)  # fmt: skip

    # Compiling takes minutes: a dry run leaves it out.
    against = variants("stock", "none+", "st3+", *([] if tiny else ["st3*", "stock~"]))
    one, some, most = batches
    table("7b", one, "stock", "none+", "st3", "st3+", "fastv+")
    suite.add(f"static/7b/{one}", timed, "7b", against, batch=one, new=short, rounds=rounds)
    for batch in (some, most):
        table("7b", batch, "stock", "none+", "st3+", "fastv+")
    for name, sizes in FAMILIES.items():
        for size in [(112, 84)] if tiny else sizes:
            suite.add(f"family/{name}/{size[0]}x{size[1]}", timed, name,
                      variants("stock", "none", "st3", "fastv"), picture=size, new=short,
                      rounds=rounds, cudnn=True)  # fmt: skip
    for name, sizes in FAMILIES.items():
        size = (112, 84) if tiny else sizes[0]
        suite.add(f"recorded/{name}/{size[0]}x{size[1]}", timed, name,
                  variants("stock", "none+", "st3+"), picture=size, new=short,
                  rounds=rounds)  # fmt: skip
    for batch in batches:
        table("13b", batch, "stock", "none+", "st3+")
    for gigabytes in (1, 2) if tiny else (80, 24, 40):
        suite.add(f"memory/7b/{gigabytes}", equal_memory, "7b", variants("stock", "st3+"),
                  budget=gigabytes * 1e9, new=short[0])  # fmt: skip
    suite.add(f"cudnn/7b/{one}", timed, "7b", variants("stock", "none", "st3", "st3+"), new=short,
              rounds=1, cudnn=True)  # fmt: skip
    long = partial(timed, variants=variants("stock", "none+", "st3+", "fastv+"), new=short,
                   cudnn=True)  # fmt: skip
    for pictures in (2 if tiny else 5, many):
        suite.add(f"long/7b/{pictures}", long, "7b", pictures=pictures, rounds=rounds)
    suite.add(f"timeline/7b/{one}", timeline, "7b", variants("stock", "st3+"), batch=one)
    for batch in (one, some):
        suite.add(f"operators/7b/{batch}", where_time_goes, "7b",
                  variants("stock", "none", "none+", "st3", "st3+"), batch=batch)  # fmt: skip
    rest = variants("stock", "none", "pvtp+", "vta+", "fastv:r=75%+", "vtw+", "pyramiddrop+",
                    "random+", "fastv")  # fmt: skip
    suite.add(f"methods/7b/{some}", timed, "7b", rest, batch=some, new=short, rounds=rounds)
    suite.add(f"static/7b/{some}", timed, "7b", against, batch=some, new=short, rounds=rounds)
    return suite.cells
