"""From counts and runs to the rows of a report: one model, any workload."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import torch

from st3.families.meta import meta_model
from st3.families.parts import find_parts
from st3.inference.quantization import Quantization
from st3.inference.weights import predicted_bytes, saved_bytes
from st3.methods import make_method
from st3.methods.schedule import Schedule
from st3.profiling.ceilings import Ceilings, Ideal, ideal_prefill, ideal_step
from st3.profiling.costs import Costs, costs_of, kv_by_layer, pictures_in
from st3.profiling.course import Course, course_of, schedule_of
from st3.profiling.latency import Measured
from st3.profiling.macs import MacCounter
from st3.profiling.picture import Picture, picture_if_any
from st3.profiling.placement import Places, kv_by_device, weights_by_device
from st3.profiling.report import Row
from st3.profiling.runs import STOCK, Run, Variant
from st3.profiling.shape import Workload, shape_of


class RowMaker:
    """Makes the rows of one model.

    Args:
        config: the model's configuration.
        dtype: of weights and cache.
        quantization: of the decoder's linear layers, whose weights are less then.
        device: where; None: none in particular.
        places: where each module lies, if a device map says so.

    Attributes:
        weights_bytes: predicted of the whole model; None of a checkpoint that has been quantised.
        shape: sizes of the model.
        state_bytes: of the states that recurrent layers keep for one prompt, whatever its length.

    Raises:
        ValueError: a configuration that does not fit.
    """

    def __init__(
        self,
        config: Any,
        dtype: torch.dtype,
        quantization: Quantization | None = None,
        device: torch.device | None = None,
        places: Places | None = None,
    ) -> None:
        self._config, self._places = config, places
        model = meta_model(config)
        self.shape = shape_of(model)
        self._parts, self._counter = find_parts(model), MacCounter(model)
        self._element = dtype.itemsize
        self._saved = saved_bytes(config, dtype, quantization, device)
        self.weights_bytes = None
        if getattr(config, "quantization_config", None) is None:
            self.weights_bytes = sum(predicted_bytes(config, dtype, quantization, device).values())
        self._spread = None
        if places is not None:
            self._spread = weights_by_device(config, dtype, quantization, places)
            self.weights_bytes = sum(self._spread.values())
        self.state_bytes = sum(x.state_bytes(self._element) for x in self._counter.layers)

    def schedule(self, variant: Variant, work: Workload) -> Schedule:
        """What a variant leaves alive of such prompts; all, without a method.

        Raises:
            ValueError: the method does not fit the model's depth.
        """
        method = variant.method or make_method("none")
        return schedule_of(method, self._parts, work)

    def rows(
        self,
        work: Workload,
        variants: Mapping[str, Variant],
        measured: Mapping[str, Measured],
        ceilings: Ceilings | None,
        weights_measured: int | None = None,
    ) -> list[Row]:
        """A row a variant.

        Args:
            work: what was asked of each.
            variants: label -> variant, `stock` among them.
            measured: label -> runs of this work; empty where none were made.
            ceilings: of the device, None where nothing was measured.
            weights_measured: bytes of the live model's weights.

        Raises:
            RuntimeError: the live cache held other bytes than the schedule says.
        """
        rows = []
        full, full_ms = self._costs(variants[STOCK], work), 0.0
        if ceilings is not None:
            full_ms = self._ideal_prefill(ceilings, variants[STOCK], work).time
        for label, variant in variants.items():
            cost = self._costs(variant, work)
            figures = _counted(cost, full)
            figures |= {
                "weights_bytes": self.weights_bytes, "weights_measured_bytes": weights_measured,
                "weights_bytes_by_device": self._spread,
                "kv_bytes_by_device": self._kv_by_device(variant, work),
            }  # fmt: skip
            if ceilings is not None and measured:
                _check_bytes(label, cost, measured[label])
                figures |= _timed(label, measured, work)
                figures |= _against_roofline(
                    figures, measured, label, ceilings,
                    self._ideal_prefill(ceilings, variant, work), full_ms,
                    ideal_step(
                        ceilings, self._counter, self.shape, self._course(variant, work), work,
                        self._element, self._saved, variant.kind,
                    ),
                )  # fmt: skip
                if variant.prepares:  # counted without, so not what was timed
                    figures |= {"step_launches": None, "step_launch_ms": None}
            method = variant.method
            settings = method.settings(self.shape.layers) if method is not None else {}
            rows.append(Row(method=label, batch_size=work.batch, settings=settings, **figures))
        return rows

    def _costs(self, variant: Variant, work: Workload) -> Costs:
        picture, schedule = self._picture(work), self.schedule(variant, work)
        return costs_of(self._counter, picture, schedule, work, self._element, variant.kind)

    def _kv_by_device(self, variant: Variant, work: Workload) -> dict[str, int] | None:
        if self._places is None:
            return None
        course, layers = self._course(variant, work), self._counter.layers
        each = kv_by_layer(layers, course, work.batch, self._element, variant.kind)
        return kv_by_device(self._config, each, self._places)

    def _course(self, variant: Variant, work: Workload) -> Course:
        pictures = pictures_in(work, self._picture(work))
        return course_of(self._counter.layers, self.schedule(variant, work), work, pictures)

    def _picture(self, work: Workload) -> Picture | None:
        return picture_if_any(self._config, work.picture, work.together, work.frames)[0]

    def _ideal_prefill(self, ceilings: Ceilings, variant: Variant, work: Workload) -> Ideal:
        course = self._course(variant, work)
        return ideal_prefill(
            ceilings, self._counter, course, work, self._element, self._saved, variant.kind
        )


def samples_of(label: str, work: Workload, measured: Measured) -> dict[str, Any]:
    """The raw times of every run, milliseconds; `tpot_ms` is each run's mean."""
    return {
        "method": label,
        "batch_size": work.batch,
        "ttft_ms": [run.ttft for run in measured.runs],
        "prefill_ms": [run.prefill for run in measured.runs],
        "e2e_ms": [run.total for run in measured.runs],
        "tpot_ms": [statistics.fmean(run.steps) if run.steps else None for run in measured.runs],
    }


def _counted(cost: Costs, full: Costs) -> dict[str, Any]:
    mean = statistics.fmean(cost.kv_bytes)
    return {
        "prefill_macs": cost.prefill_macs,
        "prefill_flops": 2 * cost.prefill_macs,
        "prefill_macs_ratio": cost.prefill_macs / full.prefill_macs,
        "decode_macs": cost.decode_macs,
        "decode_flops": 2 * cost.decode_macs,
        "decode_macs_ratio": cost.decode_macs / full.decode_macs if full.decode_macs else None,
        "vision_macs": cost.vision_macs,
        "projector_macs": cost.projector_macs,
        "lm_head_macs": cost.head_macs,
        "kv_bytes": cost.kv_bytes[0],
        "kv_ratio": cost.kv_bytes[0] / full.kv_bytes[0],
        "kv_mean_bytes": mean,
        "kv_mean_ratio": mean / statistics.fmean(full.kv_bytes),
        "kv_peak_bytes": max(cost.kv_bytes),
    }


def _check_bytes(label: str, cost: Costs, measured: Measured) -> None:
    for run in measured.runs:
        if run.kv_bytes is not None and run.kv_bytes != cost.kv_bytes:
            raise RuntimeError(
                f"{label}: the live KV cache held other bytes than its schedule says: a bug in "
                "st3, please report it with the output of `st3 env`"
            )


def _timed(label: str, measured: Mapping[str, Measured], work: Workload) -> dict[str, Any]:
    runs = measured[label].runs
    steps = [step for run in runs for step in run.steps]
    total = _median(measured, label, "total")
    peaks = [run.peak for run in runs if run.peak is not None]
    chosen = [run.selection for run in runs if run.selection is not None]
    recorded = [run.recording for run in runs if run.recording is not None]
    return {
        "ttft_ms": _median(measured, label, "ttft"),
        "vision_ms": _median(measured, label, "vision"),
        "prefill_ms": _median(measured, label, "prefill"),
        "selection_ms": statistics.median(chosen) if chosen else None,
        "tpot_ms": statistics.median(steps) if steps else None,
        "tpot_p90_ms": statistics.quantiles(steps, n=10, method="inclusive")[-1]
        if len(steps) > 1
        else None,
        "e2e_ms": total,
        "tokens_per_second": 1000 * work.batch * work.new / total,
        "speedup": _median(measured, STOCK, "total") / total,
        "speedup_over_none": (
            _median(measured, "none", "total") / total if "none" in measured else None
        ),
        "peak_memory_bytes": max(peaks) if peaks else None,
        "kv_allocated_bytes": runs[-1].allocated,
        "recording_ms": statistics.median(recorded) if recorded else None,
        "compiling_s": measured[label].compiling,
    }


def _against_roofline(
    figures: Mapping[str, Any],
    measured: Mapping[str, Measured],
    label: str,
    ceilings: Ceilings,
    prefill: Ideal,
    untrimmed_ms: float,
    step: Ideal | None,
) -> dict[str, Any]:
    ideal = 1 - prefill.time / untrimmed_ms
    achieved = 1 - figures["prefill_ms"] / _median(measured, STOCK, "prefill")
    return _launches(measured[label].launched, 1000 * ceilings.launch_seconds) | {
        "prefill_ideal_ms": prefill.time,
        "prefill_bound": _bound(prefill),
        "prefill_roofline_share": prefill.time / figures["prefill_ms"],
        "ideal_saving": ideal,
        "achieved_saving": achieved,
        "saving_share": achieved / ideal if ideal > 0 else None,
        "tpot_ideal_ms": None if step is None else step.time,
        "tpot_bound": None if step is None else _bound(step),
        "tpot_roofline_share": None if step is None else step.time / figures["tpot_ms"],
    }


def _launches(launched: Run | None, each_ms: float) -> dict[str, Any]:
    if launched is None:
        return {}
    steps = round(launched.steps[-1]) if launched.steps else None
    return {
        "prefill_launches": round(launched.prefill),
        "prefill_launch_ms": launched.prefill * each_ms,
        "step_launches": steps,
        "step_launch_ms": None if steps is None else steps * each_ms,
    }


def _bound(ideal: Ideal) -> str:
    return "compute" if ideal.arithmetic > ideal.bandwidth else "bandwidth"


def _median(measured: Mapping[str, Measured], label: str, what: str) -> float:
    return float(statistics.median(getattr(run, what) for run in measured[label].runs))
