"""Methods with a score of their own in the decoder: a file each, found by looking here.

A file has one class that is a `Deciding`, bound to `METHOD`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from st3.methods.found import methods_in


@cache
def insiders() -> dict[str, Any]:
    """Name -> its `Deciding`, sorted."""
    return methods_in(__name__, __path__)
