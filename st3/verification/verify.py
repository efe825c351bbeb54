"""From what a user calls a model to the report on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from st3.families.parts import find_parts
from st3.inference import checkpoints, configs, loading, presets
from st3.inference.processors import load_processor
from st3.machine import describe_machine, free_memory
from st3.methods import Method
from st3.verification.checks import BOUNDS, TIES, OnMethod, Verifier
from st3.verification.fitting import fitted
from st3.verification.prompts import Question, question_for
from st3.verification.report import Report
from st3.verification.subject import memory_short, tiny_model


@dataclass(frozen=True)
class Subject:
    """What is verified.

    Attributes:
        name: what was asked for.
        model: a live one. `question`: a prompt that it takes.
        weights: `checkpoint`'s own or `random`.
        notes: why it is this one, a sentence each.
    """

    name: str
    model: Any
    question: Question
    weights: str
    notes: tuple[str, ...]

    @property
    def layers(self) -> int:
        """Of its decoder."""
        return len(find_parts(self.model).layers)


def find_config(name: str, *, random: bool = False) -> tuple[Any, checkpoints.Source | None]:
    """The configuration of what a user calls a model, and its checkpoint if there is one.

    A built-in shape is one without weights unless its checkpoint was downloaded before. With
    `random`, the Hub id that it stands for is the same.

    Raises:
        ValueError: a name, family or configuration that cannot be used.
        OSError: not found, or not reachable.
    """
    short = {place: short for short, place in checkpoints.HUB_IDS.items()}
    if random:
        name = short.get(name, name)
    if name in presets.PRESETS and name != "demo":
        known = name in checkpoints.HUB_IDS
        source = checkpoints.find(name) if known else None
        if source is None or not checkpoints.in_cache(source):
            return presets.known_config(name), None
    source = checkpoints.find(name)
    return configs.load_config(source), source


def find_subject(
    name: str,
    *,
    random: bool = False,
    device: str = "auto",
    dtype: str = "auto",
    attn_implementation: str | None = None,
    seed: int = 0,
) -> Subject:
    """The checkpoint, or where there is none or it does not fit, a tiny random model of its kind.

    Args:
        name: `demo`, a built-in shape, a Hub id or a folder.
        random: take the tiny random model in any case.
        device: `auto`, or any torch device.
        dtype: `auto` is float32 where that fits, else the checkpoint's own.
        attn_implementation: passed to transformers.
        seed: of random weights, noise and text.

    Raises:
        ValueError: what cannot be used, and why; also where no prompt can be made.
        OSError: not found, or not reachable.
    """
    config, source = find_config(name, random=random)
    where = loading.find_device(device)
    notes: list[str] = []
    if source is None:
        notes.append(f"{name} is a shape without weights here: this is a tiny random model of it.")
    elif random:
        notes.append("--random: this is a tiny random model of the configuration.")
    else:
        numbers, short = _fitting(config, dtype, where)
        if short is None:
            model: Any = loading.load_weights(
                source, config, device=where, dtype=numbers, attn_implementation=attn_implementation
            )
            processor = None
            try:
                with checkpoints.fetching(source):
                    processor = load_processor(source, config)
            except (ValueError, OSError, ImportError) as error:
                reason = " ".join(str(error).split())
                notes.append(f"No processor, so the prompt is of random text: {reason}")
            return Subject(
                name, model, question_for(model, processor, seed), "checkpoint", (*notes,)
            )
        notes.append(f"The checkpoint does not fit ({short}): this is a tiny random model of it.")
    numbers = torch.float32 if dtype == "auto" else loading.find_dtype(dtype, where, config)
    model, question, how = tiny_model(
        config, device=str(where), dtype=numbers, seed=seed, attention=attn_implementation
    )
    notes.append(f"Made {how}.")
    return Subject(name, model, question, "random", (*notes,))


def verify(
    subject: Subject, methods: dict[str, Method], *, new: int, on_method: OnMethod = lambda _: None
) -> Report:
    """Check every method on a model.

    Args:
        subject: the model and its prompt.
        methods: label -> method, which fit its depth; a tau that nobody gave becomes one that the
            answer reaches.
        new: tokens to generate, at least 2.
        on_method: called with the label before each.
    """
    model, question = subject.model, subject.question
    verifier = Verifier(model, question, new)
    chosen = dict(fitted(label, method, new) for label, method in methods.items())
    return Report(
        model=subject.name,
        family=str(model.config.model_type),
        text_model=str(model.config.get_text_config().model_type),
        weights=subject.weights,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        layers=subject.layers,
        prompt=question.how,
        prompt_tokens=question.visual.shape[1],
        visual_tokens=verifier.visual_tokens,
        new_tokens=new,
        bound=BOUNDS[model.dtype],
        tie_tolerance=TIES[model.dtype],
        rows=tuple(verifier.rows(chosen, on_method)),
        notes=(*subject.notes, *(f"{why[0].upper()}{why[1:]}" for why in question.passed)),
        machine=describe_machine(model.device, model.dtype),
    )


def _fitting(config: Any, dtype: str, device: torch.device) -> tuple[torch.dtype, str | None]:
    """What to compute in, and why it does not fit, if so."""
    free = free_memory(device)
    if dtype != "auto":
        numbers = loading.find_dtype(dtype, device, config)
        return numbers, memory_short(config, numbers, free)
    short = memory_short(config, torch.float32, free)
    if short is None:
        return torch.float32, None
    own = config.dtype or config.get_text_config().dtype
    numbers = own if own in BOUNDS else torch.bfloat16
    return numbers, memory_short(config, numbers, free)
