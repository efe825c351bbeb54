"""What only a GPU can show. On a machine without one, all of it is skipped."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import greedy, prompts, tiny_config, tiny_llava
from oracle import oracle_logits
from test_oracle import CASES, ROWS

import st3
from st3.batch.ranks import Ranks, device_of
from st3.engine.order import to_device
from st3.inference.random_weights import random_model
from st3.machine import describe_machine, free_memory
from st3.methods import make_method
from st3.profiling import Workload, profile
from st3.profiling.ceilings import measure_ceilings
from st3.profiling.clocks import CudaClock
from st3.profiling.operators import operators
from st3.profiling.runs import Variant
from st3.profiling.subject import choose

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]
CUDA = torch.device("cuda")


def _here(inputs: dict[str, Any], dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    moved = {key: value.to(CUDA) for key, value in inputs.items()}
    if "pixel_values" in moved:
        moved["pixel_values"] = moved["pixel_values"].to(dtype)
    return moved


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", CASES)
def test_oracle_in_fp32(name: str, rows: str, backend: str) -> None:
    parameters, setting = CASES[name]
    model, inputs = tiny_llava(backend=backend), prompts(*ROWS[rows])
    with st3.trim(model.to(CUDA), name, **parameters):
        result = greedy(model, _here(inputs))
    answer = result.sequences[:, inputs["input_ids"].shape[1] :].cpu()
    with torch.no_grad():
        expected, _ = oracle_logits(model.cpu(), inputs, answer, setting)
    got = torch.stack(result.logits, dim=1).cpu()
    torch.testing.assert_close(got, expected.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
def test_oracle_in_half_precision(dtype: torch.dtype, bound: float) -> None:
    """Relative error of the logits, given the choice that half precision made."""
    parameters, setting = CASES["pvtp"]
    model, inputs = tiny_llava(), prompts("tttItttt", "tItt")
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype).float()
    model.to(CUDA, dtype)
    with st3.trim(model, "pvtp", **parameters) as session:
        result = greedy(model, _here(inputs, dtype))
    chosen = [[session.kept(n, row) for n in range(1, session.layers + 1)] for row in range(2)]
    answer = result.sequences[:, inputs["input_ids"].shape[1] :].cpu()
    with torch.no_grad():
        expected, _ = oracle_logits(model.cpu(), inputs, answer, setting, chosen)
    got = torch.stack(result.logits, dim=1).cpu().double()
    assert float((got - expected).norm() / expected.norm()) < bound


@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", ["one", "padded"])
def test_untrimmed_is_stock(rows: str, dtype: torch.dtype, cuda_graphs: bool) -> None:
    """Token for token in fp32; in half precision the first logits, before rounding spreads."""
    model, inputs = tiny_llava().to(CUDA, dtype), _here(prompts(*ROWS[rows]), dtype)
    want = greedy(model, inputs, 24)
    with st3.trim(model, "none", cuda_graphs=cuda_graphs):
        got = greedy(model, inputs, 24)
    if dtype == torch.float32:
        assert torch.equal(got.sequences, want.sequences)
    else:
        torch.testing.assert_close(got.logits[0], want.logits[0], atol=0.05, rtol=0.02)


@pytest.mark.parametrize("method", ["none", "st3"])
def test_no_plan_is_built_for_a_shape(method: str) -> None:
    """cuDNN's attention, which torch prefers on Hopper, would build one in every step."""
    model = tiny_llava().to(CUDA, torch.bfloat16)
    inputs = _here(prompts("tttItttt"), torch.bfloat16)
    decoder, seen = model.model.language_model, []

    def watch(*_: Any) -> None:
        watcher = torch.profiler.profile(acc_events=True)
        watcher.start()
        seen.append(watcher)

    def end(*_: Any) -> None:
        seen[-1].stop()

    before = torch.backends.cuda.cudnn_sdp_enabled()
    decoder.register_forward_pre_hook(watch)
    decoder.register_forward_hook(end)
    with st3.trim(model, method):
        greedy(model, inputs, 3)
    names = {event.key for watcher in seen for event in watcher.key_averages()}
    assert any("scaled_dot_product" in name for name in names)
    assert not any("cudnn" in name for name in names)
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


def test_a_clock_of_events() -> None:
    """A product of 2 x 4096^3 operations takes longer than a launch, and twice takes twice."""
    clock = CudaClock()
    matrix = torch.randn(4096, 4096, device=CUDA)
    for _ in range(3):
        matrix @ matrix
    marks = [clock.mark()]
    for many in (4, 8):
        for _ in range(many):
            matrix @ matrix
        marks.append(clock.mark())
    short, long = clock.between(marks[0], marks[1]), clock.between(marks[1], marks[2])
    assert 4 * 2 * 4096**3 / 2e15 < short / 1000 < 1
    assert 1.2 < long / short < 3.5


def test_numbers_reach_the_device_without_waiting() -> None:
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = to_device([3, 1, 2], CUDA)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found.tolist() == [3, 1, 2]
    assert found.device.type == "cuda"


def test_ceilings_and_memory() -> None:
    before = free_memory(CUDA)
    held = torch.empty(2**28, dtype=torch.uint8, device=CUDA)
    assert before - free_memory(CUDA) >= 2**28 or torch.cuda.memory_reserved() > 2**28
    del held
    found = measure_ceilings(CUDA, torch.bfloat16)
    assert 1e11 < found.macs_per_second < 5e15
    assert 1e10 < found.bytes_per_second < 5e13
    assert 1e-7 < found.launch_seconds < 1e-3


def test_the_machine_is_described() -> None:
    found = describe_machine(CUDA, torch.bfloat16)
    assert found["gpu"] == torch.cuda.get_device_name()
    assert found["gpu_memory_bytes"] > 1e9
    assert found["driver"]
    assert found["cuda"] == torch.version.cuda


def test_what_does_not_fit_is_not_timed() -> None:
    config = tiny_config()
    config.text_config.max_position_embeddings = 2**40
    live, _, note = choose(
        None, config, Workload(visual=64, text=2**36), weights="auto", device=CUDA,
        dtype=torch.bfloat16,
    )  # fmt: skip
    assert live is None
    assert "are free" in note


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_a_profile(cuda_graphs: bool) -> None:
    """Times by events, peak memory, bytes checked against the schedule, launches counted."""
    model = random_model(tiny_config(), device="cuda", dtype=torch.bfloat16)
    methods = {name: make_method(name) for name in ("none", "st3")}
    report = profile(
        "tiny", model.config, methods, [Workload(visual=64, text=8, new=6, batch=2)],
        dtype=torch.bfloat16, live=model, weights="random", repeats=2, cuda_graphs=cuda_graphs,
    )  # fmt: skip
    for row in report.rows:
        assert 0 < row.vision_ms + row.prefill_ms < row.ttft_ms < row.e2e_ms
        assert row.peak_memory_bytes > 2 * report.shape["parameters"]
    assert report.machine["gpu"]


def test_operators_of_the_device() -> None:
    model = random_model(tiny_config(), device="cuda", dtype=torch.bfloat16)
    method = make_method("st3")
    variants = {"stock": Variant(), "st3": Variant(method), "recorded": Variant(method, True)}
    for entry in operators(model, Workload(visual=64, text=8, new=8), variants):
        kinds, replayed = entry["kinds"], entry["kinds"]["replayed"]
        assert sum(kinds.values()) == pytest.approx(entry["wall_ms"], rel=0.1)
        assert entry["kernels_run"] > 70
        if entry["method"] == "recorded":
            assert replayed > kinds["matmul"]
        else:
            assert kinds["matmul"] > replayed


def test_a_rank_of_a_sweep_takes_its_own_device() -> None:
    assert device_of("auto", Ranks()) == torch.device("cuda")
    for local in range(torch.cuda.device_count()):
        assert device_of("auto", Ranks(local, 2, local)) == torch.device("cuda", local)
    with pytest.raises(ValueError, match="torch sees"):
        device_of("cuda", Ranks(1, 2, torch.cuda.device_count()))
