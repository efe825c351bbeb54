"""`st3 env`: what a bug report needs."""

from __future__ import annotations

import os

from st3_cli import options as o
from st3_cli.console import print_json, print_texts

_VARIABLES = ("HF_HOME", "HF_HUB_OFFLINE", "HF_TOKEN", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
_UNSAID = {"HF_HOME", "HF_TOKEN"}  # a report names no paths and no keys


def env(json: o.JsonOption = False, debug: o.DebugOption = False) -> None:
    """Print versions and hardware, to paste into a bug report."""
    from st3.machine import describe_machine
    from st3.units import si

    found = describe_machine()
    for name in _VARIABLES:
        value = os.environ.get(name)
        found[name] = "set" if value and name in _UNSAID else value
    if json:
        print_json(found)
        return
    rows = [
        (
            key.removesuffix("_bytes"),
            "-" if value is None else si(value, "B") if key.endswith("_bytes") else str(value),
        )
        for key, value in found.items()
    ]
    print_texts(("Environment", ("", ""), rows))
