"""Tiny random models of the families that are proven."""

from __future__ import annotations

from families.tiny import Tiny
from families.zoo.grids import GRIDS
from families.zoo.pictures import PICTURES
from families.zoo.states import STATES
from families.zoo.windows import WINDOWS

ZOO: dict[str, Tiny] = {**PICTURES, **GRIDS, **WINDOWS, **STATES}
