"""Methods with a score of their own in the decoder: a file each, found by looking here.

A file has one class that is a `Deciding`, bound to `METHOD`.
"""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from typing import Any


@cache
def insiders() -> dict[str, Any]:
    """Name -> its `Deciding`, sorted."""
    modules = (import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__))
    found: list[Any] = [module.METHOD for module in modules]
    return {method.name: method for method in sorted(found, key=lambda m: m.name)}
