"""The controls of a method's parameters: what they are called, and where they may stand."""

from __future__ import annotations

from typing import Any

import gradio as gr

from st3.methods.scorers import SCORERS
from st3.page.view import SHARES

_LABELS = {
    "prune_ratio": "P, dropped at layer 4, % of the visual tokens",
    "stride": "S, layers between one drop and the next",
    "ratio": "R, dropped every S layers, % (moves with C)",
    "final_keep": "C, left in the last layer, % (moves with R)",
    "tau": "tau, generated tokens until none is left (0: none, they stay)",
}
_MOST_TAU = 512


def knob(name: str, layers: int) -> Any:
    """The control of a parameter, for a decoder of so many layers."""
    if name == "scorer":
        return gr.Dropdown([*SCORERS], label="Scorer, what decides which tokens stay")
    most = {"stride": layers, "tau": _MOST_TAU}.get(name, 100)
    least, step = (1, 1) if name == "stride" else (0, 1 if name == "tau" else 0.1)
    return gr.Slider(least, most, step=step, label=_LABELS[name])


def position(name: str, value: Any) -> dict[str, Any]:
    """Where it stands for a parameter's value."""
    if name in SHARES and value is not None:
        return {"value": round(100 * value, 2)}
    if name == "tau":
        return {"value": min(value or 0, _MOST_TAU)}
    return {} if value is None else {"value": value}
