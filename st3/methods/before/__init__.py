"""Methods that choose visual tokens before the decoder: a file each, found by looking here.

A file has one class that is a `Selecting`, bound to `METHOD`.
"""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from typing import Any


@cache
def selectors() -> dict[str, Any]:
    """Name -> its `Selecting`, sorted."""
    modules = (import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__))
    found: list[Any] = [module.METHOD for module in modules]
    return {method.name: method for method in sorted(found, key=lambda m: m.name)}
