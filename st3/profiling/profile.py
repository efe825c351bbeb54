"""`profile`: count every method, time it where the model fits, and put both beside the roofline."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import torch

from st3.engine.pieces import as_pictures
from st3.families.meta import meta_model
from st3.families.parts import find_parts
from st3.inference.device_map import home
from st3.inference.quantization import Quantization
from st3.inference.suits import suits
from st3.inference.weights import live_bytes
from st3.machine import describe_machine
from st3.methods import Method
from st3.profiling.ceilings import Ceilings, best_of, measure_ceilings
from st3.profiling.costs import pictures_in
from st3.profiling.figures import samples_of
from st3.profiling.latency import Measured, measure
from st3.profiling.openvino import OPENVINO, OpenVino
from st3.profiling.operators import operators
from st3.profiling.picture import picture_if_any
from st3.profiling.placement import Places
from st3.profiling.report import Report, Row
from st3.profiling.rows import RowMaker
from st3.profiling.runs import STOCK, Variant, beside_stock
from st3.profiling.shape import Workload
from st3.units import si

_BEYOND = (
    "The model was much faster than the matrix products measured beside it: do not trust the "
    "roofline."
)
_STATE = "Recurrent layers keep {} of state for each prompt beside the KV cache, trimmed or not."
_ADAPTIVE = "{}: how many tokens stay depends on the picture, so MACs are not known beforehand."
_INTERRUPTED = "Interrupted: medians are over the rounds that had ended, if any."


def profile(
    name: str,
    config: Any,
    methods: Mapping[str, Method],
    works: Sequence[Workload],
    *,
    dtype: torch.dtype,
    quantization: Quantization | None = None,
    device: torch.device | None = None,
    places: Places | None = None,
    live: Any = None,
    weights: str | None = None,
    repeats: int = 5,
    min_seconds: float = 0.0,
    cuda_graphs: bool = False,
    compile: str = "off",
    openvino: OpenVino | None = None,
    watch_operators: bool = False,
    command: str = "",
    notes: Sequence[str] = (),
    on_run: Callable[[str, int], None] = lambda name, done: None,
) -> Report:
    """Profile methods on one model.

    Args:
        name: of the model, for the report.
        config: its configuration.
        methods: label -> method; `stock` is always added. One that is not for this model or such
            prompts is a note, and no row.
        works: what is asked of it, one entry a batch size.
        dtype: of weights and cache.
        quantization: of the decoder's linear layers, which the live model has.
        device: for which weights are counted; the live model's if there is one.
        places: where each module lies, if a device map says so.
        live: the model to time, on its device; None counts only.
        weights: what the live model's are, "pretrained" or "random".
        repeats, min_seconds, on_run: see `st3.profiling.latency.measure`.
        cuda_graphs, compile: of every method, see `st3.trim`; stock goes without, and where methods
            are compiled stands there once more, compiled by transformers.
        openvino: a row for OpenVINO's own pipeline, too. What cannot be had is a note, and no row.
        watch_operators: also find out where the decoder's time goes.
        command, notes: for the report.

    Raises:
        ValueError: a configuration that does not fit, a method that does not fit its depth, no
            method that this model and such prompts are for, a workload that does not fit the live
            model.
        RuntimeError: the live cache held other bytes than the schedule says.
    """
    maker = RowMaker(config, dtype, quantization, device if live is None else home(live), places)
    held = None if live is None else sum(live_bytes(live).values())  # before it has run
    variants = beside_stock(methods, cuda_graphs=cuda_graphs, compile=compile)
    if openvino is not None:
        variants = {STOCK: variants.pop(STOCK), OPENVINO: Variant(peer=openvino), **variants}
    if live is None:  # what is only counted is stock's
        variants = {label: v for label, v in variants.items() if v.seen_through}
    dropped: dict[tuple[str, str], list[int]] = {}
    told = {label: _refusal(method, config, works) for label, method in methods.items()}
    refused = {label: why for label, why in told.items() if why}
    if refused and len(refused) == len(methods):
        raise ValueError("; ".join(f"{label}: {why}" for label, why in refused.items()))
    methods = {label: method for label, method in methods.items() if label not in refused}
    variants = {label: v for label, v in variants.items() if label not in refused}
    for label in methods:  # what does not fit is refused before anything is timed
        maker.schedule(variants[label], works[0])
    options: dict[str, Any] = {"repeats": repeats, "min_seconds": min_seconds}
    timed, ceilings, interrupted = _time(live, works, variants, dtype, on_run, dropped, options)
    best = best_of(ceilings) if ceilings else None
    rows: list[Row] = []
    samples = []
    for number, work in enumerate(works):
        measured = timed[number] if number < len(timed) else {}
        rows += maker.rows(work, variants, measured, best, held)
        samples += [samples_of(label, work, found) for label, found in measured.items()]
    layers = range(1, maker.shape.layers + 1)
    seen = timed[0] if timed else {}
    schedules = {
        label: maker.schedule(variants[label], works[0], seen.get(label)) for label in methods
    }
    unknown = [label for label, schedule in schedules.items() if schedule.entering.adaptive]
    if unknown:
        notes = [*notes, _ADAPTIVE.format(", ".join(unknown))]
    watched: list[dict[str, Any]] = []
    if watch_operators and samples and not interrupted:
        for work in works:
            watched += operators(live, work, beside_stock(methods))
    if any((row.prefill_roofline_share or 0) > 1.2 for row in rows):
        notes = [*notes, _BEYOND]
    if not samples and interrupted:
        notes = []
    notes = [*notes, *(f"{label}: no row: {why}." for label, why in refused.items())]
    for (label, why), batches in dropped.items():
        at = f" at batch {', '.join(map(str, batches))}" if len(works) > 1 else ""
        notes = [*notes, f"{label}: not measured{at}: {why}."]
    if openvino is not None and openvino.facts and samples:
        notes = [*notes, _openvino_note(openvino.facts)]
    machine = describe_machine(None if live is None else home(live), dtype)
    if best is not None:
        machine["ceilings"] = asdict(best)
    work = works[0]
    picture, untold = picture_if_any(config, work.picture, work.together, work.frames)
    pictures, like = pictures_in(work, picture), None if picture is None else picture.piece
    if picture is None:
        notes = [*notes, f"Vision tower and projector not counted: {untold}."]
    if maker.state_bytes:
        notes = [*notes, _STATE.format(si(maker.state_bytes, "B"))]
    if quantization is not None:
        notes = [*notes, _weights_note(maker.weights_bytes, held, quantization, dtype)]
    length = work.visual + work.text + work.new
    if length > maker.shape.context:
        notes = [*notes, f"{length} tokens exceed the model's context of {maker.shape.context}."]
    return Report(
        model=name,
        weights=weights if samples else None,
        rows=tuple(rows),
        shape=asdict(maker.shape)
        | {
            "picture_tokens": picture and picture.tokens,
            "picture_size": list(work.picture),
            "video_frames": work.frames or None,
            "state_bytes": maker.state_bytes,
        },
        settings={
            "visual_tokens": work.visual, "text_tokens": work.text, "new_tokens": work.new,
            **options, "quantization": quantization and quantization.name,
            "cuda_graphs": cuda_graphs, "compile": compile, "command": command,
            "date": datetime.date.today().isoformat(),
        },
        machine=machine,
        notes=(*notes, *([_INTERRUPTED] * interrupted)),
        samples=tuple(samples),
        alive={
            label: [
                [schedule.count(layer, work.visual, t, pictures, like) for layer in layers]
                for t in range(work.new)
            ]
            for label, schedule in schedules.items()
            if not schedule.entering.adaptive
        },
        operators=tuple(watched),
        interrupted=interrupted,
    )  # fmt: skip


def _refusal(method: Method, config: Any, works: Sequence[Workload]) -> str:
    """Why a method would be refused of such prompts; nothing where it would not be."""
    if method.selector is None:
        return ""
    fits, why = suits(lambda: method, config)
    if not fits:
        return why
    if method.selector.spares == "pictures" and not any(work.frames for work in works):
        picture, _ = picture_if_any(config, works[0].picture, works[0].together)
        several = pictures_in(works[0], picture) > 1
        if not (several and as_pictures(find_parts(meta_model(config)).merger)):
            return "it goes by what changes from frame to frame: ask for a video"
    return ""


def _openvino_note(facts: Mapping[str, Any]) -> str:
    versions = facts["versions"]
    return (
        f"{OPENVINO}: untrimmed, random weights of the same shape; computed in "
        f"{facts['precision']}, keys and values in {facts['kv_cache_precision']}, on "
        f"{facts['threads']} threads, by OpenVINO {versions['openvino']} and optimum-intel "
        f"{versions['optimum-intel']} with transformers {versions['transformers']}; exported in "
        f"{facts['export_seconds']:.3g} s."
    )


def _weights_note(
    predicted: int | None, held: int | None, quantization: Quantization, dtype: torch.dtype
) -> str:
    word = str(dtype).removeprefix("torch.")
    said = f"Weights: linear layers of the decoder in {quantization.name}, the rest in {word}; "
    said += f"{si(predicted or 0, 'B')} predicted, "
    if held is None:
        return f"{said}not measured."
    return (
        f"{said}{si(held, 'B')} measured. The roofline reads them in their bits, and computes in "
        f"{word}."
    )


def _time(
    live: Any, works: Sequence[Workload], variants: Mapping[str, Variant], dtype: torch.dtype,
    on_run: Callable[[str, int], None], dropped: dict[tuple[str, str], list[int]],
    options: dict[str, Any],
) -> tuple[list[dict[str, Measured]], list[Ceilings], bool]:  # fmt: skip
    """Runs of each workload, ceilings before and after each, and whether Ctrl-C ended it.

    What could not be had, and why, goes to `dropped`, with the batch sizes.
    """
    timed: list[dict[str, Measured]] = []
    ceilings: list[Ceilings] = []
    if live is None:
        return timed, ceilings, False
    where = home(live)
    on_cuda = where.type == "cuda"
    try:
        with torch.cuda.device(where) if on_cuda else nullcontext():
            for work in works:
                ceilings.append(measure_ceilings(where, dtype))

                def drop(label: str, why: str, batch: int = work.batch) -> None:
                    dropped.setdefault((label, why), []).append(batch)

                found, interrupted = measure(
                    live, work, variants, on_run=on_run, on_drop=drop, **options
                )
                timed.append(found)
                if interrupted:
                    return timed, ceilings, True
            ceilings.append(measure_ceilings(where, dtype))
    except KeyboardInterrupt:
        return timed, ceilings, True
    return timed, ceilings, False
