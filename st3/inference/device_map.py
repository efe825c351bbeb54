"""Weights spread over several devices: what a device map may say, seen before they are read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from st3.families.meta import meta_model
from st3.families.parts import find_parts
from st3.files import plainly
from st3.machine import gpu_count

STRATEGIES = ("auto", "balanced", "sequential")
"""Of accelerate, which fills GPUs, then main memory, then the disk; it splits no layer."""
DISK = torch.device("meta")
"""What stands for weights that stay in the checkpoint's files until they are needed."""


def read_device_map(text: str) -> str | dict[str, Any]:
    """A strategy, a JSON document, or the file that holds one: module -> device.

    Raises:
        ValueError: none of them.
    """
    if text in STRATEGIES:
        return text
    document = text
    if not text.lstrip().startswith(("{", "[")):
        path = Path(text).expanduser()
        if not path.is_file():
            raise ValueError(
                f"unknown device map {text!r}: give {', '.join(STRATEGIES)}, a JSON file or JSON "
                'text such as {"": "cuda:0"}'
            )
        with plainly("read", path):
            document = path.read_text(encoding="utf-8")
    try:
        found = json.loads(document)
    except ValueError as error:
        raise ValueError(f"the device map is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(  # noqa: TRY004  # of a file's contents
            "the device map is no JSON object of modules and their devices"
        )
    return found


def places_of(device_map: str | Mapping[str, Any], config: Any) -> str | dict[str, torch.device]:
    """A strategy as it is; of a map prefix of names -> device, which fits the configuration.

    No prefix of what is returned holds another: accelerate would not see the inner one.

    Raises:
        ValueError: an unknown strategy, a device that is not here, a name that the model lacks,
            weights without a device, or a layer that is split.
    """
    if isinstance(device_map, str):
        if device_map not in STRATEGIES:
            raise ValueError(f"unknown device_map {device_map!r}; known: {', '.join(STRATEGIES)}")
        return device_map
    if not isinstance(device_map, Mapping):
        raise ValueError(  # noqa: TRY004  # as of any other map
            f"the device map is a {type(device_map).__name__}: give a strategy, or a mapping of "
            'modules to devices, such as {"": "cuda:0"}'
        )
    model = meta_model(config)
    places = {str(name): _device(where) for name, where in device_map.items()}
    names = _names("", model)
    for prefix in places:
        if prefix and not any(f"{name}.".startswith(f"{prefix}.") for name in names):
            raise ValueError(f"the device map names {prefix!r}, which the model does not have")
    found = {name: place_of(name, places) for name in names}
    where = {name: device for name, device in found.items() if device is not None}
    lost = [name for name in names if name not in where]
    if lost:
        raise ValueError(
            f"the device map leaves {len(lost)} weights without a device, {lost[0]} among them: "
            'give "" a device for all the others'
        )
    layers = {id(layer) for layer in find_parts(model).layers}
    for name, module in model.named_modules():
        if id(module) in layers or type(module).__name__ in (model._no_split_modules or ()):
            _check_whole(name, module, where)
    return _disjoint("", model, where)


def place_of(name: str, places: Mapping[str, torch.device]) -> torch.device | None:
    """Where a map puts a parameter or buffer: the longest prefix decides."""
    while name not in places:
        if not name:
            return None
        name = name.rpartition(".")[0]
    return places[name]


def computes_on(where: torch.device, places: Mapping[str, torch.device]) -> torch.device:
    """Where accelerate computes what lies there: beside a GPU nothing computes where it waits."""
    first = first_device(places)
    return first if where == DISK or where.type == "cpu" else where


def first_device(places: str | Mapping[str, torch.device]) -> torch.device:
    """Where it computes first: a GPU if there is any, of a map if it names any."""
    if isinstance(places, str):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = [device for device in places.values() if device != DISK]
    return next((device for device in found if device.type != "cpu"), torch.device("cpu"))


def home(model: Any) -> torch.device:
    """Where a live model takes its inputs: offloaded weights lie nowhere, and still compute."""
    for module in (model, model.get_input_embeddings()):  # accelerate's hooks are on either
        where = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
        if where is not None:
            return torch.device(where)
    device: torch.device = model.device
    return device


def _disjoint(
    name: str, module: nn.Module, where: Mapping[str, torch.device]
) -> dict[str, torch.device]:
    """A map by the largest modules that lie on one device, of one by tensors."""
    names = _names(name, module)
    devices = {where[each] for each in names}
    if len(devices) == 1:
        return dict.fromkeys([name], *devices)
    inner = {f"{name}.{child}".removeprefix("."): part for child, part in module.named_children()}
    own = [each for each in names if not any(each.startswith(f"{child}.") for child in inner)]
    found = {each: where[each] for each in own}
    for child, part in inner.items():
        found |= _disjoint(child, part, where)
    return found


def _names(name: str, module: nn.Module) -> list[str]:
    """Of all that a module of this name holds, tied weights under each of their names."""
    parameters = module.named_parameters(name, remove_duplicate=False)
    buffers = module.named_buffers(name, remove_duplicate=False)
    return [key for key, _ in (*parameters, *buffers)]


def _check_whole(name: str, layer: nn.Module, where: Mapping[str, torch.device]) -> None:
    devices = {where[each] for each in _names(name, layer)}
    if len(devices) > 1:
        words = sorted("disk" if device == DISK else str(device) for device in devices)
        raise ValueError(
            f"the device map splits {name} over {' and '.join(words)}: a layer must lie on one "
            "device"
        )


def _device(where: Any) -> torch.device:
    """Of a map's value: a number of a GPU, a torch device, or disk.

    Raises:
        ValueError: no such device here.
    """
    if where in ("disk", DISK):
        return DISK
    text = f"cuda:{where}" if str(where).isdecimal() else str(where)
    try:
        found = torch.device(text)
    except RuntimeError:
        raise ValueError(
            f"the device map names an unknown device {where!r}: give cuda:0, cpu or disk"
        ) from None
    if found.type == "cpu":
        return torch.device("cpu")
    if found.type != "cuda":
        raise ValueError(f"the device map names {text}: give cuda:0, cpu or disk")
    count = gpu_count()
    if (found.index or 0) >= count:
        raise ValueError(
            f"the device map names {text}, and torch sees {count or 'no'} CUDA devices: "
            "give cpu or disk, or another number"
        )
    return torch.device("cuda", found.index or 0)
