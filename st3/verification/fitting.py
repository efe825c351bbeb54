"""Parameters under which a method trims something in a model of few layers and a short answer."""

from __future__ import annotations

from typing import Any

from st3.methods import METHODS, Method, split_spec
from st3.methods.composed import split
from st3.methods.peers import FastV, PyramidDrop

_SHARE = 0.75  # of the answer, after which nothing visual is left


def standard_methods(layers: int) -> str:
    """A list of every method of the registry that a decoder so deep can have."""
    most = {FastV: ("k", FastV.k, layers - 1), PyramidDrop: ("stages", PyramidDrop.stages, layers)}
    specs = []
    for name, kind in METHODS.items():
        key, default, limit = most.get(kind, ("", 0, 0))
        specs.append(f"{name}:{key}={max(1, limit)}" if limit < default else name)
    return ",".join(specs)


def fitted(label: str, method: Method, new: int) -> tuple[str, Method]:
    """The method with a tau that the answer reaches, unless one was asked for, and its label.

    Args:
        label: its name and the parameters that were asked for, as a spec.
        method: as it was asked for.
        new: tokens of the answer.
    """
    asked = split_spec(split(label)[-1])[1]
    given = {pair.partition("=")[0] for pair in asked.split(",")}
    changed: dict[str, Any] = {}
    if getattr(method, "tau", None) is not None and "tau" not in given:
        changed["tau"] = max(1, round(_SHARE * new))
    if not changed:
        return label, method
    words = ",".join(f"{key}={value}" for key, value in changed.items())
    joint = "," if asked else ":"
    return f"{label}{joint}{words}", method.changed(**changed)
