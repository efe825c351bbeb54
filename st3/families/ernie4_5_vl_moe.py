"""ERNIE 4.5 VL: experts are chosen by whether a token is text or picture."""

from __future__ import annotations

from st3.families.base import Adapter

ADAPTER = Adapter("ernie4_5_vl_moe", token_arguments=(("moe_mm_token_type_ids", 0),))
