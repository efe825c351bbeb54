"""The processes of a run: which one this is, and where it computes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from st3.inference.loading import find_device


@dataclass(frozen=True)
class Ranks:
    """Which process this is, of how many, and its number on this machine.

    Attributes:
        wait: for all of them.
        gather: what all of them have, to each of them; all must call it within minutes.
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    wait: Callable[[], None] = lambda: None
    gather: Callable[[Any], list[Any]] = lambda own: [own]


def find_ranks(device: str) -> Ranks:
    """One process, or those that `accelerate launch` or torchrun started."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Ranks()
    from accelerate import PartialState
    from accelerate.utils import gather_object

    # Without a GPU and unasked, accelerate takes each process for the only one.
    state = PartialState(cpu=find_device(device).type == "cpu")
    return Ranks(
        state.process_index,
        state.num_processes,
        state.local_process_index,
        state.wait_for_everyone,
        lambda own: list(gather_object([own])),
    )


def device_of(device: str, ranks: Ranks) -> torch.device:
    """Where a process runs: of several on one machine each takes a GPU of its own.

    Raises:
        ValueError: no such device here.
    """
    where = find_device(device)
    if where.type == "cuda" and ranks.world > 1:
        return find_device(f"cuda:{ranks.local}")
    return where
