"""The figures of one row: from costs, runs and ceilings to what a report says of them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from st3.profiling.ceilings import Ceilings, Ideal
from st3.profiling.costs import Costs
from st3.profiling.latency import Measured
from st3.profiling.outcome import Run
from st3.profiling.runs import STOCK
from st3.profiling.shape import Workload

NO_STEP = {"tpot_ideal_ms": None, "tpot_bound": None, "tpot_roofline_share": None}
"""Of a row whose decode step is not held against the roofline."""


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


def counted(cost: Costs, full: Costs) -> dict[str, Any]:
    """By arithmetic; shares are of `full`."""
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


def uncounted(cost: Costs, full: Costs, measured: Measured | None) -> dict[str, Any]:
    """Where nobody knows how many tokens enter the decoder: only what was measured is said.

    Args:
        cost: if all did; of it, what does not depend on that.
        full: of stock. `measured`: None where nothing was.
    """
    known = dict.fromkeys(counted(cost, full))
    known |= {
        "vision_macs": cost.vision_macs,
        "projector_macs": cost.projector_macs,
        "lm_head_macs": cost.head_macs,
    }
    held = None if measured is None else measured.runs[0].kv_bytes
    if held is None:
        return known
    mean = statistics.fmean(held)
    return known | {
        "kv_bytes": held[0],
        "kv_ratio": held[0] / full.kv_bytes[0],
        "kv_mean_bytes": mean,
        "kv_mean_ratio": mean / statistics.fmean(full.kv_bytes),
        "kv_peak_bytes": max(held),
    }


def check_bytes(label: str, cost: Costs, measured: Measured) -> None:
    """Raises RuntimeError where a live cache held other bytes than were counted."""
    for run in measured.runs:
        if run.kv_bytes is not None and run.kv_bytes != cost.kv_bytes:
            raise RuntimeError(
                f"{label}: the live KV cache held other bytes than its schedule says: a bug in "
                "st3, please report it with the output of `st3 env`"
            )


def timed(label: str, measured: Mapping[str, Measured], work: Workload) -> dict[str, Any]:
    """By the clock."""
    runs = measured[label].runs
    steps = [step for run in runs for step in run.steps]
    total = _median(measured, label, "total")
    peaks = [run.peak for run in runs if run.peak is not None]
    chosen = [run.selection for run in runs if run.selection is not None]
    recorded = [run.recording for run in runs if run.recording is not None]
    return {
        "ttft_ms": _median(measured, label, "ttft"),
        "vision_ms": None if runs[0].vision is None else _median(measured, label, "vision"),
        "prefill_ms": None if runs[0].prefill is None else _median(measured, label, "prefill"),
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


def against_roofline(
    figures: Mapping[str, Any],
    measured: Mapping[str, Measured],
    label: str,
    ceilings: Ceilings,
    prefill: Ideal,
    untrimmed_ms: float,
    step: Ideal | None,
) -> dict[str, Any]:
    """Measured beside ideal; of prefill only where it was seen.

    Args:
        figures: of `timed`.
        prefill, step: what the device could do.
        untrimmed_ms: ideal prefill of `stock`.
    """
    against = _launches(measured[label].launched, 1000 * ceilings.launch_seconds)
    if figures["prefill_ms"] is not None:
        ideal = 1 - prefill.time / untrimmed_ms
        achieved = 1 - figures["prefill_ms"] / _median(measured, STOCK, "prefill")
        against |= {
            "prefill_ideal_ms": prefill.time,
            "prefill_bound": _bound(prefill),
            "prefill_roofline_share": prefill.time / figures["prefill_ms"],
            "ideal_saving": ideal,
            "achieved_saving": achieved,
            "saving_share": achieved / ideal if ideal > 0 else None,
        }
    return against | {
        "tpot_ideal_ms": None if step is None else step.time,
        "tpot_bound": None if step is None else _bound(step),
        "tpot_roofline_share": None if step is None else step.time / figures["tpot_ms"],
    }


def _launches(launched: Run | None, each_ms: float) -> dict[str, Any]:
    if launched is None:
        return {}
    assert launched.prefill is not None
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
