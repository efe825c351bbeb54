"""What a method costs by arithmetic: MACs and bytes of KV cache, from shapes and the schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass

from st3.methods.schedule import Schedule
from st3.profiling.macs import MacCounter, tokens_alive
from st3.profiling.picture import Picture
from st3.profiling.shape import Shape, Workload


@dataclass(frozen=True)
class Costs:
    """Of one workload, its whole batch.

    Attributes:
        prefill_macs: decoder layers, over the prompt.
        decode_macs: decoder layers, over all decode steps together.
        vision_macs, projector_macs: once, at prefill.
        head_macs: the LM head, for every new token.
        kv_bytes: live keys and values after prefill and in each decode step.
    """

    prefill_macs: int
    decode_macs: int
    vision_macs: int
    projector_macs: int
    head_macs: int
    kv_bytes: tuple[int, ...]


def costs_of(
    counter: MacCounter, shape: Shape, picture: Picture, schedule: Schedule, work: Workload,
    element: int,
) -> Costs:  # fmt: skip
    """Count one method.

    Args:
        picture: one of those that the visual tokens come from.
        element: bytes of one cached number.
    """
    pictures = math.ceil(work.visual / picture.tokens)
    return Costs(
        prefill_macs=work.batch * counter.prefill(schedule, work),
        decode_macs=work.batch * counter.decode(schedule, work),
        vision_macs=work.batch * pictures * picture.vision_macs,
        projector_macs=work.batch * pictures * picture.projector_macs,
        head_macs=work.batch * work.new * counter.head(),
        kv_bytes=kv_bytes(shape, schedule, work, element),
    )


def kv_bytes(shape: Shape, schedule: Schedule, work: Workload, element: int) -> tuple[int, ...]:
    """Bytes of live keys and values after prefill, and in each of the new - 1 decode steps."""
    token = 2 * work.batch * shape.kv_heads * shape.head_size * element
    return tuple(token * sum(tokens_alive(schedule, work, t)) for t in range(work.new))
