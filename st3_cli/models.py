"""Loading the model that a command asks, and saying what of its checkpoint is set aside."""

from __future__ import annotations

import os
from typing import Any

from st3_cli.console import aside
from st3_cli.errors import UsageError


def load_model(
    name: str,
    device: str,
    dtype: str,
    attn_implementation: str | None,
    quantization: str | None = None,
    device_map: str | None = None,
    *,
    tensor_parallel: bool = False,
    quiet: bool = False,
) -> tuple[Any, Any]:
    """A model and its processor, see `st3.load`; with one note, if there is something to say.

    Raises:
        UsageError: a device and a device map.
    """
    check_device_map(device, device_map)
    if tensor_parallel and "RANK" not in os.environ:
        from st3.inference.parallel import START

        raise UsageError(f"--tensor-parallel needs several processes: start it by {START}")
    if tensor_parallel and (quantization, device_map, device) != (None, None, "auto"):
        raise UsageError("--tensor-parallel: leave --quantization, --device-map and --device out")
    where = None if device_map is None else device_map_of(device_map)

    from st3.inference.loading import load

    live, processor = load(
        name,
        device=str(device),
        dtype=str(dtype),
        attn_implementation=None if attn_implementation is None else str(attn_implementation),
        quantization=None if quantization is None else str(quantization),
        device_map=where,
        tensor_parallel=tensor_parallel,
    )
    if not quiet:
        note_set_aside(live)
    return live, processor


def device_map_of(text: str) -> Any:
    """What --device-map says, see `st3.load`.

    Raises:
        UsageError: nothing that can be read.
    """
    from st3.inference.device_map import read_device_map

    try:
        return read_device_map(text)
    except ValueError as error:
        raise UsageError(f"--device-map: {error}") from None


def check_device_map(device: str, device_map: str | None) -> None:
    """See that one of both says where weights lie.

    Raises:
        UsageError: both do.
    """
    if device_map is not None and device != "auto":
        raise UsageError("--device-map takes the place of --device: give one of them")


def note_hub(name: str) -> None:
    """One line on stderr before a model is asked of the Hub, which may take its time to answer."""
    from st3.inference import checkpoints

    source = checkpoints.find(name)
    if not (source.is_folder or checkpoints.offline() or checkpoints.in_cache(source)):
        aside(f"asking the Hub for {source.place}")


def note_set_aside(live: Any) -> None:
    """One line on stderr, if the checkpoint asks for another way to decode than the commands'."""
    from st3.inference.decoding import describe, set_aside

    others = set_aside(live)
    if others:
        aside(
            "note: decoding is as the options say; set aside what the checkpoint asks for: "
            f"{describe(others)}"
        )
