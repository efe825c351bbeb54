"""How many tokens each layer computes and holds, from the prompt to the last token of an answer.

Layers that see everything hold what the schedule says. What a layer with a window holds is asked
of the engine's own cache layer, which is filled and emptied on the meta device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from st3.engine.filling import most_alive
from st3.engine.order import Order
from st3.engine.plan import Plan
from st3.engine.prompt import Prompt
from st3.engine.window_layer import WindowLayer
from st3.families.parts import Parts
from st3.methods import Method
from st3.methods.budget import Piece
from st3.methods.schedule import Schedule
from st3.profiling.layers import Layer
from st3.profiling.shape import Workload


@dataclass(frozen=True)
class Course:
    """Of one prompt, layer by layer.

    Attributes:
        tokens: that a layer computes at prefill.
        keys: that it looks at then, those of its lender where it has none of its own.
        held: for the prefill and each of the new - 1 steps, the keys at hand in each layer, the new
            token's among them.
    """

    tokens: tuple[int, ...]
    keys: tuple[int, ...]
    held: tuple[tuple[int, ...], ...]


def schedule_of(method: Method, parts: Parts, work: Workload) -> Schedule:
    """What a method leaves alive of such prompts, fitted to layers that do not see all of them.

    Raises:
        ValueError: the method does not fit the model's depth.
    """
    return Plan.of(method, parts, tokens=work.visual + work.text).schedule


def course_of(
    layers: Sequence[Layer],
    schedule: Schedule,
    work: Workload,
    pictures: int = 1,
    like: Piece | None = None,
) -> Course:
    """Follow one prompt of a workload.

    Args:
        layers: sizes of the model's.
        schedule: for prompts of this length.
        pictures: in the prompt, which say where the last visual token stands.
        like: what each of them is, if that is known.
    """
    prompt = Prompt(
        tokens=work.visual + work.text,
        visual=(work.visual,),
        text=(work.text,),
        trailing=work.trailing(pictures),
        last_visual=work.visual + work.text - work.trailing(pictures) - 1,
    )
    numbers = range(1, len(layers) + 1)
    visual = schedule.entering.of_alike(work.visual, pictures, like)
    schedule = schedule.inside
    tokens = [schedule.count(n, visual) + work.text for n in numbers]
    lenders = [(layer.lender or n) - 1 for n, layer in zip(numbers, layers, strict=True)]
    known: dict[tuple[int | None, float], list[int]] = {}
    by_layer = []
    for number, layer in zip(numbers, layers, strict=True):
        kind = layer.window, schedule.keeps[number - 1]
        if kind not in known:
            known[kind] = _held(layer.window, number, schedule, visual, work, prompt)
        by_layer.append(known[kind])
    return Course(
        tokens=tuple(1 if layer.hurried else n for layer, n in zip(layers, tokens, strict=True)),
        keys=tuple(tokens[n] for n in lenders),
        held=tuple(tuple(by_layer[n][t] for n in lenders) for t in range(work.new)),
    )


def _held(
    window: int | None, number: int, schedule: Schedule, visual: int, work: Workload,
    prompt: Prompt,
) -> list[int]:  # fmt: skip
    """Keys of a layer at prefill and in each step, if `visual` visual tokens entered layer 1."""
    counts = [schedule.count(number, visual, t) for t in range(work.new)]
    if window is None:
        return [count + work.text + t for t, count in enumerate(counts)]
    layer, tokens = WindowLayer(window, prompt.last_visual), counts[0] + work.text
    states, new = (torch.empty(1, 1, n, 1, device="meta") for n in (tokens, 1))
    order = None
    if schedule.anneals:
        order = Order(torch.arange(tokens, device="meta")[None], None, counts[0])
    layer.store(
        states, states, seen=prompt.tokens, room=work.new, valid=None, order=order,
        capacity=partial(most_alive, schedule, number, visual, work.text),
    )  # fmt: skip
    held = [layer.alive]
    for left in counts[1:]:
        if schedule.anneals:
            layer.evict([left])
        layer.expire()
        held.append(layer.alive + 1)
        layer.update(new, new)
    return held
