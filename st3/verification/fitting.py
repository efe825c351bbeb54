"""Parameters under which a method trims something in a model of few layers and a short answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

from st3.methods import METHODS, Method
from st3.methods.peers import FastV, PyramidDrop

_SHARE = 0.75  # of the answer, after which nothing visual is left


def standard_methods(layers: int) -> str:
    """A list of every method of the registry that a decoder so deep can have."""
    specs = []
    for name, kind in METHODS.items():
        spec = name
        if kind is FastV:
            spec = f"{name}:k={max(1, min(FastV.k, layers - 1))}"
        elif kind is PyramidDrop:
            spec = f"{name}:stages={min(PyramidDrop.stages, layers)}"
        specs.append(spec)
    return ",".join(specs)


def fitted(label: str, method: Method, given: Collection[str], new: int) -> tuple[str, Method]:
    """The method with a tau that the answer reaches, unless one was asked for, and its label.

    Args:
        label: what it is called.
        method: as it was asked for.
        given: parameters that were.
        new: tokens of the answer.
    """
    changed: dict[str, Any] = {}
    if getattr(method, "tau", None) is not None and "tau" not in given:
        changed["tau"] = max(1, round(_SHARE * new))
    if not changed:
        return label, method
    words = ",".join(f"{key}={value}" for key, value in changed.items())
    joint = "," if ":" in label else ":"
    return f"{label}{joint}{words}", dataclasses.replace(method, **changed)
