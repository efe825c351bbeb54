"""Methods that choose visual tokens before the decoder: a file each, found by looking here.

A file has one class that is a `Selecting`, bound to `METHOD`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from st3.methods.found import methods_in


@cache
def selectors() -> dict[str, Any]:
    """Name -> its `Selecting`, sorted."""
    return methods_in(__name__, __path__)
