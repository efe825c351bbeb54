"""What a method costs by arithmetic: MACs and bytes of KV cache, from shapes and the schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from st3.methods.schedule import Schedule
from st3.profiling.course import Course, course_of
from st3.profiling.layers import Layer
from st3.profiling.macs import MacCounter
from st3.profiling.picture import Picture
from st3.profiling.shape import Workload


@dataclass(frozen=True)
class Costs:
    """Of one workload, its whole batch.

    Attributes:
        prefill_macs: decoder layers, over the prompt.
        decode_macs: decoder layers, over all decode steps together.
        vision_macs, projector_macs: once, at prefill; None where the picture is not known.
        head_macs: the LM head, for every new token.
        kv_bytes: live keys and values after prefill and in each decode step.
    """

    prefill_macs: int
    decode_macs: int
    vision_macs: int | None
    projector_macs: int | None
    head_macs: int
    kv_bytes: tuple[int, ...]


def costs_of(
    counter: MacCounter,
    picture: Picture | None,
    schedule: Schedule,
    work: Workload,
    element: int,
    kind: str = "auto",
) -> Costs:
    """Count one method.

    Args:
        picture: one of those that the visual tokens come from; None if nobody knows.
        schedule: for prompts of this length.
        element: bytes of a number. `kind`: how the cache holds them, one of `KV_CACHE_DTYPES`.
    """
    pictures = pictures_in(work, picture)
    count = work.batch * pictures
    like = None if picture is None else picture.piece
    course = course_of(counter.layers, schedule, work, pictures, like)
    return Costs(
        prefill_macs=work.batch * counter.prefill(course),
        decode_macs=work.batch * counter.decode(course),
        vision_macs=None if picture is None else count * picture.vision_macs,
        projector_macs=None if picture is None else count * picture.projector_macs,
        head_macs=work.batch * work.new * counter.head(),
        kv_bytes=kv_bytes(counter.layers, course, work.batch, element, kind),
    )


def pictures_in(work: Workload, picture: Picture | None) -> int:
    """How many such pictures the visual tokens of a prompt make; one if nobody knows."""
    return 1 if picture is None else math.ceil(work.visual / picture.tokens)


def kv_bytes(
    layers: Sequence[Layer], course: Course, batch: int, element: int, kind: str = "auto"
) -> tuple[int, ...]:
    """Bytes of live keys and values after prefill, and in each of the new - 1 decode steps.

    Latents where the cache holds these; of layers that borrow their keys, or keep a state, none.
    """
    steps = range(len(course.held))
    return tuple(sum(kv_by_layer(layers, course, batch, element, kind, t)) for t in steps)


def kv_by_layer(
    layers: Sequence[Layer], course: Course, batch: int, element: int, kind: str, step: int = 0
) -> list[int]:
    """The same of each layer, after prefill or in a step."""
    held = course.held[step]
    return [
        batch * layer.cached_bytes(element, kind) * n for layer, n in zip(layers, held, strict=True)
    ]
