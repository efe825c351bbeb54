"""A profile of weights in few bits: their bytes, what memory they need, and the roofline."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import tiny_config

from st3.inference.quantization import QUANTIZATIONS
from st3.inference.random_weights import random_model
from st3.inference.weights import predicted_bytes, saved_bytes
from st3.methods import make_method
from st3.profiling import Workload, profile, subject
from st3.profiling.ceilings import Ceilings, ideal_prefill, ideal_step
from st3.profiling.course import course_of
from st3.profiling.macs import MacCounter
from st3.profiling.rows import RowMaker
from st3.profiling.runs import Variant
from st3.profiling.shape import shape_of

pytest.importorskip("torchao")
pytest.importorskip("bitsandbytes")
WORK = Workload(64, 8, 4, picture=(32, 32))
INT8 = QUANTIZATIONS["torchao-int8"]


@pytest.mark.parametrize("name", ["torchao-int8", "bnb-4bit"])
def test_weights_are_predicted_and_measured(name: str) -> None:
    config, quantization = tiny_config(layers=4), QUANTIZATIONS[name]
    live = random_model(config, device="cpu", quantization=quantization)
    methods = {"none": make_method("none")}
    options: dict[str, Any] = {"dtype": torch.float32, "quantization": quantization}
    report = profile("tiny", config, methods, [WORK], live=live, weights="random", repeats=1,
                     **options)  # fmt: skip
    counted = profile("tiny", config, methods, [WORK], **options)
    bytes_of = sum(predicted_bytes(config, torch.float32, quantization).values())
    for row, without in zip(report.rows, counted.rows, strict=True):
        assert row.weights_bytes == row.weights_measured_bytes == without.weights_bytes == bytes_of
        assert without.weights_measured_bytes is None
        assert row.tpot_ms is not None
    assert report.settings["quantization"] == name
    assert all(f"weights in {name}" in table.title for table in report.tables())
    assert any("kB predicted" in note and "kB measured" in note for note in report.notes)
    assert any("not measured" in note for note in counted.notes)
    plain = profile("tiny", config, methods, [WORK], dtype=torch.float32)
    assert plain.rows[0].weights_bytes == sum(predicted_bytes(config, torch.float32).values())
    assert plain.settings["quantization"] is None


def test_the_roofline_reads_fewer_bytes() -> None:
    from st3.families.meta import meta_model

    config = tiny_config(layers=4)
    model = meta_model(config)
    counter, ceilings = MacCounter(model), Ceilings(1e30, 1e9, 0.0)
    schedule = RowMaker(config, torch.float32).schedule(Variant(make_method("none")), WORK)
    course = course_of(counter.layers, schedule, WORK, 1)
    saved = saved_bytes(config, torch.float32, INT8, None)
    linear = 64 * 64 * 2 + 64 * 32 * 2 + 64 * 96 * 3  # weights of a layer
    outputs = 64 + 32 + 32 + 64 + 96 + 96 + 64
    assert saved == [4 * linear - (linear + 5 * outputs)] * 4
    none = [0] * 4
    whole = ideal_prefill(ceilings, counter, course, WORK, 4, none)
    less = ideal_prefill(ceilings, counter, course, WORK, 4, saved)
    assert whole.bandwidth - less.bandwidth == pytest.approx(sum(saved) / 1e6)
    shape = shape_of(model)
    step = ideal_step(ceilings, counter, shape, course, WORK, 4, none)
    short = ideal_step(ceilings, counter, shape, course, WORK, 4, saved)
    assert step is not None
    assert short is not None
    assert step.bandwidth - short.bandwidth == pytest.approx(sum(saved) / 1e6)


def test_fewer_bits_may_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    config, cpu = tiny_config(layers=4), torch.device("cpu")
    whole = sum(predicted_bytes(config, torch.float32).values())
    monkeypatch.setattr(subject, "free_memory", lambda device: whole + 50_000)
    options: dict[str, Any] = {"weights": "random", "device": cpu, "dtype": torch.float32}
    with pytest.raises(ValueError, match="too little"):
        subject.choose(None, config, WORK, **options)
    live, kind, _ = subject.choose(None, config, WORK, **options, quantization=INT8)
    assert (kind, live.device) == ("random", cpu)
