"""From counts and runs to the rows of a report: one model, any workload."""

from __future__ import annotations

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
from st3.profiling.figures import NO_STEP, against_roofline, check_bytes, counted, timed, uncounted
from st3.profiling.latency import Measured
from st3.profiling.macs import MacCounter
from st3.profiling.picture import Picture, picture_if_any
from st3.profiling.placement import Places, kv_by_device, weights_by_device
from st3.profiling.report import Row
from st3.profiling.runs import STOCK, Variant
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

    def schedule(
        self, variant: Variant, work: Workload, measured: Measured | None = None
    ) -> Schedule:
        """What a variant leaves alive of such prompts; all, without a method.

        How many a method lets in that decides so by the picture is what it `measured`; its budget
        stays adaptive where nobody knows, or rows of a batch differ.

        Raises:
            ValueError: the method does not fit the model's depth.
        """
        method = variant.method or make_method("none")
        schedule = schedule_of(method, self._parts, work)
        entered = {n for run in (measured.runs if measured else ()) for n in run.entered or ()}
        if schedule.entering.adaptive and len(entered) == 1:
            return schedule.with_entered(entered.pop())
        return schedule

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
            measured: label -> runs of this work; empty where none were made. A variant that is
                missing where others are there could not be had, and has no row.
            ceilings: of the device, None where nothing was measured.
            weights_measured: bytes of the live model's weights.

        Raises:
            RuntimeError: the live cache held other bytes than the schedule says.
        """
        rows = []
        stock, full_ms = self.schedule(variants[STOCK], work), 0.0
        full = self._costs(variants[STOCK], work, stock)
        if ceilings is not None:
            full_ms = self._ideal_prefill(ceilings, variants[STOCK], work, stock).time
        for label, variant in variants.items():
            if measured and label not in measured:
                continue
            schedule = self.schedule(variant, work, measured.get(label))
            known, by_device = not schedule.entering.adaptive, None
            if known:
                by_device = self._kv_by_device(variant, work, schedule)
            cost = self._costs(variant, work, schedule)
            figures = counted(cost, full) if known else uncounted(cost, full, measured.get(label))
            figures |= {
                "weights_bytes": self.weights_bytes,
                "weights_measured_bytes": None if variant.peer else weights_measured,
                "weights_bytes_by_device": self._spread,
                "kv_bytes_by_device": by_device,
            }  # fmt: skip
            if ceilings is not None and measured:
                figures |= timed(label, measured, work)
            if ceilings is not None and measured and known:
                check_bytes(label, cost, measured[label])
                figures |= against_roofline(
                    figures, measured, label, ceilings,
                    self._ideal_prefill(ceilings, variant, work, schedule), full_ms,
                    ideal_step(
                        ceilings, self._counter, self.shape, self._course(work, schedule), work,
                        self._element, self._saved, variant.kind,
                    ),
                )  # fmt: skip
                if variant.prepares:  # counted without, so not what was timed
                    figures |= {"step_launches": None, "step_launch_ms": None}
                if variant.peer is not None and variant.peer.element != self._element:
                    figures |= NO_STEP  # its bytes are not the model's
            rows.append(
                Row(
                    method=label, batch_size=work.batch, settings=self._settings(variant), **figures
                )
            )  # fmt: skip
        return rows

    def _settings(self, variant: Variant) -> dict[str, Any]:
        if variant.peer is not None:
            return dict(variant.peer.facts)
        return {} if variant.method is None else variant.method.settings(self.shape.layers)

    def _costs(self, variant: Variant, work: Workload, schedule: Schedule) -> Costs:
        picture = self._picture(work)
        element = self._element if variant.peer is None else variant.peer.element or self._element
        return costs_of(self._counter, picture, schedule, work, element, variant.kind)

    def _kv_by_device(
        self, variant: Variant, work: Workload, schedule: Schedule
    ) -> dict[str, int] | None:
        if self._places is None:
            return None
        course, layers = self._course(work, schedule), self._counter.layers
        each = kv_by_layer(layers, course, work.batch, self._element, variant.kind)
        return kv_by_device(self._config, each, self._places)

    def _course(self, work: Workload, schedule: Schedule) -> Course:
        picture = self._picture(work)
        pictures, like = pictures_in(work, picture), None if picture is None else picture.piece
        return course_of(self._counter.layers, schedule, work, pictures, like)

    def _picture(self, work: Workload) -> Picture | None:
        return picture_if_any(self._config, work.picture, work.together, work.frames)[0]

    def _ideal_prefill(
        self, ceilings: Ceilings, variant: Variant, work: Workload, schedule: Schedule
    ) -> Ideal:
        course = self._course(work, schedule)
        return ideal_prefill(
            ceilings, self._counter, course, work, self._element, self._saved, variant.kind
        )
