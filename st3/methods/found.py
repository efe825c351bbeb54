"""Methods found by being there: a file each, in a package of them."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable
from importlib import import_module
from typing import Any


def methods_in(package: str, path: Iterable[str]) -> dict[str, Any]:
    """Name -> the class that each file of a package binds to `METHOD`, sorted."""
    modules = (import_module(f"{package}.{found.name}") for found in pkgutil.iter_modules(path))
    kinds: list[Any] = [module.METHOD for module in modules]
    return {kind.name: kind for kind in sorted(kinds, key=lambda kind: kind.name)}
