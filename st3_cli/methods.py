"""`st3 methods`: the trimming methods, their parameters and where they come from."""

from __future__ import annotations

import dataclasses
import inspect

from st3_cli import options as o
from st3_cli.console import print_json, print_table


def methods(json: o.JsonOption = False, debug: o.DebugOption = False) -> None:
    """List the trimming methods, their parameters with the defaults, and their papers."""
    from st3.methods import METHODS
    from st3.methods.scorers import SCORERS

    found = [
        {
            "name": name,
            "parameters": {field.name: field.default for field in dataclasses.fields(cls)},
            "what": (inspect.getdoc(cls) or "").partition("\n")[0],
            "source": cls.source,
        }
        for name, cls in METHODS.items()
    ]
    if json:
        print_json({"methods": found, "scorers": list(SCORERS)})
        return
    rows = [
        (
            str(one["name"]),
            ", ".join(
                f"{key}={'auto' if value is None and key != 'tau' else value}"
                for key, value in one["parameters"].items()  # type: ignore[attr-defined]
                if key not in ("scorer", "kv_cache_dtype")
            ) or "-",
            str(one["what"]),
            str(one["source"]),
        )
        for one in found
    ]  # fmt: skip
    print_table("Methods", ("name", "parameters", "what it does", "source"), rows, wrap=True)
    print_table(
        "Every method takes scorer=NAME, what decides which tokens stay, and kv_cache_dtype=NAME",
        ("names",),
        [(", ".join(SCORERS),)],
        wrap=True,
    )
