"""Which bytes lie on which device, where a device map spreads a model over several."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import dispatch_model, infer_auto_device_map

from st3.families.meta import meta_model
from st3.families.parts import layer_names
from st3.inference.device_map import DISK, computes_on, first_device, place_of, places_of
from st3.inference.quantization import Quantization
from st3.inference.weights import placed_bytes

Places = Mapping[str, torch.device]
"""Prefix of names -> device, as `st3.inference.device_map.places_of` returns it."""


def places_for(device_map: str | Mapping[str, Any], config: Any) -> Places:
    """Where a map puts the modules of a model; what a strategy of accelerate's would do here.

    Raises:
        ValueError: see `places_of`.
    """
    found = places_of(device_map, config)
    if not isinstance(found, str):
        return found
    model = meta_model(config)
    whole = list(model._no_split_modules or ())
    names = infer_auto_device_map(model, no_split_module_classes=whole)
    made = places_of({name: str(where) for name, where in names.items()}, config)
    assert not isinstance(made, str)
    return made


def weights_by_device(
    config: Any, dtype: torch.dtype, quantization: Quantization | None, places: Places
) -> dict[str, int]:
    """Device -> bytes of weights, predicted; what waits on a disk counts as "offloaded"."""
    found = placed_bytes(config, dtype, quantization, places)
    return {"offloaded" if where == DISK else str(where): n for where, n in found.items()}


def kv_by_device(config: Any, by_layer: Sequence[int], places: Places) -> dict[str, int]:
    """Device -> bytes of keys and values, of which each layer has so many.

    Those of a layer whose weights are offloaded, to a disk or beside a GPU to main memory, lie
    where it computes: on the first device.
    """
    found: dict[str, int] = defaultdict(int)
    for name, size in zip(layer_names(meta_model(config)), by_layer, strict=True):
        where = place_of(name, places)
        home = first_device(places) if where is None else computes_on(where, places)
        found[str(home)] += size
    return dict(found)


def dispatched(model: Any, places: Places) -> Any:
    """A live model, spread by accelerate.

    Raises:
        ValueError: weights that would have to go to a disk, which only a checkpoint's can.
    """
    if DISK in places.values():
        raise ValueError("random weights cannot wait on a disk: leave disk out of the device map")
    skip = model._skip_keys_device_placement
    where = {name: str(device) for name, device in places.items()}
    return dispatch_model(model, where, skip_keys=skip, force_hooks=True)
