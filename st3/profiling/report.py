"""The rows of a profile, and the same as JSON, CSV and Markdown."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from dataclasses import dataclass
from typing import Any

from st3.machine import made_with
from st3.profiling.tables import tables
from st3.tables import Table


@dataclass(frozen=True)
class Row:
    """One method at one batch size. Whatever was not measured is None.

    MACs are multiply-accumulates, FLOPs twice as many, of the whole batch; `prefill_*` and
    `decode_*` count the decoder layers alone, decode over all steps of the answer. Ratios are to
    untrimmed. KV bytes are those of live keys and values: at the end of prefill, at most, and on
    average over prefill and decode steps; `kv_allocated_bytes` are those of the buffers. A method
    that decides by each picture how many tokens stay has MACs of what was timed, and none where
    nothing was, or where rows of a batch differ: KV bytes are then what was measured.
    `weights_bytes` are predicted from the configuration, in their bits and with their scales,
    `weights_measured_bytes` counted in the model that was timed, as loaded, on all devices;
    `*_by_device` are predicted where a device map spreads the model, KV after prefill.

    `prefill_ms` is the decoder alone, `vision_ms` the tower, `ttft_ms` all of it; `selection_ms` is
    what choosing and dropping tokens takes of these, None where it was not measured; `tpot_ms` is
    the median over all steps; `recording_ms` is what recording CUDA graphs takes, once in a `with
    st3.trim`, `compiling_s` what comes before the first answer in a process: compiling, recording,
    an export; `e2e_ms` is without either. Speed-ups are of `e2e_ms`, over `stock` and over `none`.
    `*_ideal_ms` is the roofline, `*_bound` what makes it, `*_roofline_share` ideal over measured.
    `ideal_saving` is the share of the untrimmed roofline time of prefill that the method does not
    need, `achieved_saving` the share of stock's measured `prefill_ms`, `saving_share` the second
    over the first. `*_launches` counts operations, views left out, `*_launch_ms` is the time to
    start them.
    """

    method: str
    batch_size: int
    prefill_macs: int | None
    prefill_flops: int | None
    prefill_macs_ratio: float | None
    decode_macs: int | None
    decode_flops: int | None
    decode_macs_ratio: float | None
    vision_macs: int | None
    projector_macs: int | None
    lm_head_macs: int
    kv_bytes: int | None
    kv_ratio: float | None
    kv_mean_bytes: float | None
    kv_mean_ratio: float | None
    kv_peak_bytes: int | None
    weights_bytes: int | None = None
    weights_measured_bytes: int | None = None
    weights_bytes_by_device: dict[str, int] | None = None
    kv_bytes_by_device: dict[str, int] | None = None
    kv_allocated_bytes: int | None = None
    ttft_ms: float | None = None
    vision_ms: float | None = None
    prefill_ms: float | None = None
    selection_ms: float | None = None
    tpot_ms: float | None = None
    tpot_p90_ms: float | None = None
    recording_ms: float | None = None
    compiling_s: float | None = None
    e2e_ms: float | None = None
    tokens_per_second: float | None = None
    speedup: float | None = None
    speedup_over_none: float | None = None
    peak_memory_bytes: int | None = None
    prefill_ideal_ms: float | None = None
    prefill_bound: str | None = None
    prefill_roofline_share: float | None = None
    ideal_saving: float | None = None
    achieved_saving: float | None = None
    saving_share: float | None = None
    tpot_ideal_ms: float | None = None
    tpot_bound: str | None = None
    tpot_roofline_share: float | None = None
    prefill_launches: int | None = None
    prefill_launch_ms: float | None = None
    step_launches: int | None = None
    step_launch_ms: float | None = None
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """A profile.

    Attributes:
        model: what was asked for.
        weights: "pretrained" or "random", what was timed; None if nothing was.
        rows: one a method and batch size.
        shape: sizes of the model.
        settings: of the workload and the measurement.
        machine: what it was made with; ceilings of the device among them, if measured.
        notes: what a reader must know, a sentence each.
        samples: label and batch size with the raw times of every run.
        alive: label -> visual tokens in each layer after each number of generated tokens,
            [[...layers] ...], for plots.
        operators: where the decoder's time goes, see `st3.profiling.operators`; empty if not asked.
        interrupted: Ctrl-C ended the measurement early.
    """

    model: str
    weights: str | None
    rows: tuple[Row, ...]
    shape: dict[str, Any]
    settings: dict[str, Any]
    machine: dict[str, Any]
    notes: tuple[str, ...]
    samples: tuple[dict[str, Any], ...]
    alive: dict[str, list[list[int]]]
    operators: tuple[dict[str, Any], ...] = ()
    interrupted: bool = False

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        document = dataclasses.asdict(self)
        del document["alive"]
        return document

    def tables(self, *, detail: bool = False) -> list[Table]:
        """To print."""
        return tables(self.as_dict(), detail=detail)

    def json(self) -> str:
        """One document."""
        return json.dumps(self.as_dict(), indent=2, ensure_ascii=False) + "\n"

    def csv(self) -> str:
        """One line a row, each with the model, its weights and the date."""
        text = io.StringIO()
        common = {"model": self.model, "weights": self.weights}
        common |= {key: value for key, value in self.settings.items() if key != "command"}
        common |= {
            key: self.machine.get(key) for key in ("device", "dtype", "gpu", "cpu", "threads")
        }
        common |= {key: self.machine[key] for key in ("torch", "transformers")}
        rows = [common | dataclasses.asdict(row) for row in self.rows]
        writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            dicts = {key: json.dumps(x) for key, x in row.items() if isinstance(x, dict)}
            writer.writerow(row | dicts)
        return text.getvalue()

    def markdown(self, *, detail: bool = True) -> str:
        """All tables, and below them how they were made."""
        return markdown(self.as_dict(), detail=detail)


def markdown(document: dict[str, Any], *, detail: bool = True) -> str:
    """The Markdown of a report that was saved as JSON."""
    parts = [table.markdown() for table in tables(document, detail=detail)]
    return "\n".join([*parts, *(f"{note}\n" for note in (*document["notes"], made_with(document)))])
