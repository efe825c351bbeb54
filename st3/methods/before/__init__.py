"""Methods that choose visual tokens before the decoder: a file each, found by looking here.

A file has one class that is a `Selecting`, bound to `METHOD`.
"""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from st3.methods.selecting import Selecting


@cache
def selectors() -> dict[str, type[Selecting]]:
    """Name -> method, sorted by stage and name."""
    modules = (import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__))
    found: list[type[Selecting]] = [module.METHOD for module in modules]
    return {method.name: method for method in sorted(found, key=lambda m: m.name)}
