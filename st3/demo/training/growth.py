"""The demo's decoder grows in training: from twelve layers, which learn to answer, to thirty-two.

A step of twelve layers takes two fifths of the time. The twenty that are added begin as copies of
the layer before them whose outputs are zero, so that the grown model answers exactly as the small
one does (as in LLaMA Pro, Wu et al., ACL 2024), and learn what they can from there.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import LlavaForConditionalGeneration

_FIRST = 3  # stay where they are: under ST3 the third layer decides who is dropped first


def sources(young: int, grown: int) -> list[tuple[int, bool]]:
    """For each of `grown` layers (from 0), which of `young` it comes from, and whether it is new.

    The first three stay the first three, and the others are spread evenly behind them.
    """
    stay = min(_FIRST, young)
    places = [*range(stay)]
    places += [
        stay - 1 + round((number + 1) * (grown - stay) / (young - stay))
        for number in range(young - stay)
    ]
    found = []
    for layer in range(grown):
        source = max(number for number, place in enumerate(places) if place <= layer)
        found.append((source, places[source] != layer))
    return found


@torch.no_grad()
def grow(model: Any, layers: int) -> Any:
    """A LLaVA with `layers` decoder layers, in fp32, that answers as `model` does."""
    config = copy.deepcopy(model.config)
    config.text_config.num_hidden_layers = layers
    grown: Any = LlavaForConditionalGeneration(config)
    old, new = (each.model.language_model.layers for each in (model, grown))
    grown.model.language_model.layers = torch.nn.ModuleList()
    grown.load_state_dict(
        {key: x for key, x in model.state_dict().items() if ".language_model.layers." not in key}
    )
    grown.model.language_model.layers = new
    for layer, (source, added) in zip(new, sources(len(old), layers), strict=True):
        layer.load_state_dict(old[source].state_dict())
        if added:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    return grown
