"""Gemma 4: each layer gets an embedding of its own for every token."""

from __future__ import annotations

from st3.families.base import Adapter

ADAPTER = Adapter("gemma4", token_arguments=(("per_layer_input", 1),))
