"""OpenVINO's pipeline beside ours: taking turns, and whatever can go wrong with a worker.

What a worker says is scripted here; the real one needs an interpreter with optimum-intel, named in
ST3_OPENVINO (`.ci/openvino` makes one).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from conftest import tiny_config, tiny_llava
from families.zoo import ZOO
from safetensors.torch import save_file
from transformers import CompileConfig

from st3.methods import make_method
from st3.profiling import Workload, latency, openvino, profile, runs
from st3.profiling.ceilings import Ceilings
from st3.profiling.openvino import OPENVINO, OpenVino
from st3.profiling.outcome import Run, Unavailable
from st3.profiling.runs import COMPILED_STOCK, Variant, random_inputs

WORK = Workload(visual=64, text=9, new=5)
WORKER = Path(openvino.__file__).with_name("peer_worker.py")
REAL = os.environ.get("ST3_OPENVINO", "")
without = pytest.mark.skipif(not REAL, reason="no ST3_OPENVINO")

FACTS = {
    "precision": "f32", "kv_cache_precision": "f16", "threads": 2, "weights_seconds": 1.0,
    "export_seconds": 20.0, "load_seconds": 3.0,
    "versions": {"openvino": "1.2", "optimum-intel": "3.4", "transformers": "5.6", "torch": "7.8"},
}  # fmt: skip
SECONDS = [0.5, 0.75, 1.0, 1.25, 1.5]
_SCRIPT = """
import json, os, signal, sys, time
for number, line in enumerate(sys.stdin):
    began = time.monotonic()
    time.sleep(0.02)
    if number == NUMBER:
        exec(FATE)
    answer = FACTS if "folder" in json.loads(line) else {"seconds": SECONDS}
    with open(LOG, "a") as file:
        file.write(f"{began} {time.monotonic()}\\n")
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture(autouse=True)
def _no_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring them takes longer than all else here."""
    known = Ceilings(1e11, 1e10, 1e-6)
    module = sys.modules["st3.profiling.profile"]
    monkeypatch.setattr(module, "measure_ceilings", lambda *_: known)


@pytest.fixture
def scripted(tmp_path: Path) -> Any:
    """Make an `OpenVino` whose worker is one of ours: `(number of a request, what then)`."""

    def make(fate: tuple[int, str] = (-1, "")) -> OpenVino:
        path = tmp_path / "worker.py"
        known = {"NUMBER": fate[0], "FATE": fate[1], "FACTS": FACTS, "SECONDS": SECONDS}
        known["LOG"] = str(tmp_path / "log")
        lines = [f"{name} = {value!r}" for name, value in known.items()]
        path.write_text("\n".join(lines) + _SCRIPT, encoding="utf-8")
        return OpenVino(sys.executable, tiny_config(layers=4), torch.float32, worker=path)

    return make


def measured(model: Any, peer: OpenVino, **more: Any) -> Any:
    with peer:
        return profile(
            "tiny", model.config, {"none": make_method("none")}, [WORK], live=model,
            weights="random", dtype=torch.float32, repeats=2, openvino=peer, **more,
        )  # fmt: skip


def test_it_takes_turns_and_is_a_row(
    scripted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours: list[tuple[float, float]] = []
    decode = runs.decode

    def logged(*arguments: Any, **more: Any) -> Any:
        began = time.monotonic()
        answer = decode(*arguments, **more)
        ours.append((began, time.monotonic()))
        return answer

    monkeypatch.setattr(runs, "decode", logged)
    order: list[tuple[str, int]] = []
    report = measured(
        tiny_llava(layers=4), scripted(), on_run=lambda name, done: order.append((name, done))
    )
    log = (tmp_path / "log").read_text(encoding="utf-8").splitlines()
    theirs = [tuple(map(float, line.split())) for line in log]
    assert len(theirs) == 4  # opened, warmed up, twice timed
    for began, ended in theirs:
        assert not [1 for a, b in ours if a < ended and began < b], "both at a time"
    assert order == [(name, n) for n in (0, 0, 1) for name in ("stock", OPENVINO, "none")]

    stock, row, _ = report.rows
    assert (row.method, row.settings) == (OPENVINO, FACTS)
    assert (row.ttft_ms, row.tpot_ms, row.e2e_ms) == (500, 250, 1500)
    assert row.speedup == pytest.approx(stock.e2e_ms / 1500)
    assert row.prefill_macs == stock.prefill_macs
    assert 2 * row.kv_bytes == stock.kv_bytes  # it says f16
    assert (row.prefill_ms, row.vision_ms, row.step_launches, row.tpot_ideal_ms) == (None,) * 4
    assert row.compiling_s is not None
    assert stock.compiling_s is None
    note = next(note for note in report.notes if note.startswith(OPENVINO))
    for said in ("f32", "values in f16", "2 threads", "OpenVINO 1.2", "random weights", "20 s"):
        assert said in note
    latencies = next(t for t in report.tables() if t.title.startswith("Latency"))
    assert "compiling, s" in latencies.heads
    for table in report.tables():  # of it nothing but its tokens is seen
        named = OPENVINO in [line[0] for line in table.rows]
        assert named == ("roofline" not in table.title)


@pytest.mark.parametrize(
    ("fate", "said"),
    [
        ((0, "sys.exit('no more disk')"), "ended with 1 (no more disk)"),
        ((1, "os.kill(os.getpid(), signal.SIGKILL)"), "was killed by SIGKILL (it said nothing)"),
        ((3, "print('what?', flush=True); os._exit(3)"), "ended with 3 (it said nothing)"),
        ((0, 'print(json.dumps({"error": "llava? never heard of"}), flush=True)'), "never heard"),
        ((2, 'print(json.dumps({"seconds": [0.1]}), flush=True)'), "1 tokens came where 5 were"),
    ],
)
def test_a_worker_that_fails_is_a_line(scripted: Any, fate: Any, said: str) -> None:
    """At its start, in the warm-up, in the middle: no row, all others whole, nothing left."""
    peer = scripted(fate)
    seen: list[Any] = []

    def look(*_: Any) -> None:
        if peer._process is not None:
            seen[:] = [peer._process.pid, peer._folder]

    report = measured(tiny_llava(layers=4), peer, on_run=look)
    assert [row.method for row in report.rows] == ["stock", "none"]
    assert all(len(sample["e2e_ms"]) == 2 for sample in report.samples)
    notes = [note for note in report.notes if note.startswith(OPENVINO)]
    assert len(notes) == (2 if peer.facts else 1)
    assert said in notes[0]
    assert "\n" not in notes[0]
    if seen:
        assert not psutil.pid_exists(seen[0])
        assert not seen[1].exists()
    with pytest.raises(Unavailable):  # and it is not tried again
        peer.generate({}, WORK)


def test_a_worker_that_fails_at_the_second_batch(scripted: Any) -> None:
    """Opened, warmed up, twice timed; then it is out of memory."""
    model, works = tiny_llava(layers=4), [WORK, replace(WORK, batch=8)]
    with scripted((4, "sys.exit('out of memory')")) as peer:
        report = profile(
            "tiny", model.config, {"none": make_method("none")}, works, live=model,
            weights="random", dtype=torch.float32, repeats=2, openvino=peer,
        )  # fmt: skip
    rows = [(row.method, row.batch_size) for row in report.rows]
    assert rows == [("stock", 1), (OPENVINO, 1), ("none", 1), ("stock", 8), ("none", 8)]
    notes = [note for note in report.notes if note.startswith(OPENVINO)]
    assert notes[0].startswith(f"{OPENVINO}: not measured at batch 8: ")
    assert "out of memory" in notes[0]
    assert report.rows[1].weights_measured_bytes is None


def test_an_interpreter_without_optimum() -> None:
    """The real worker under the interpreter of the tests."""
    inputs = random_inputs(tiny_llava(layers=4), WORK)
    with OpenVino(sys.executable, tiny_config(layers=4), torch.float32) as peer:
        with pytest.raises(Unavailable, match="it has no optimum"):
            peer.generate(inputs, WORK)
        with pytest.raises(Unavailable, match="it has no optimum"):
            peer.generate(inputs, WORK)


def test_no_interpreter(st3_: Any, tmp_path: Path) -> None:
    with (
        OpenVino(str(tmp_path), tiny_config(layers=4), torch.float32) as peer,
        pytest.raises(Unavailable, match="cannot be run"),
    ):
        peer.generate({}, WORK)
    for wrong, said in [
        (("--openvino", tmp_path / "python"), "no interpreter"),
        (("--openvino", sys.executable, "--no-latency"), "--no-latency"),
        (("--openvino", sys.executable, "--quantization", "torchao-int8"), "--quantization"),
    ]:
        result = st3_("profile", *wrong)
        assert result.code == 2
        assert said in result.err


def test_when_the_asker_is_gone_its_folder_goes(tmp_path: Path) -> None:
    """Whoever is killed cannot clean up: the worker does as its standard input ends."""
    folder = tmp_path / "it"
    folder.mkdir()
    request = json.dumps({"folder": str(folder), "precision": "f32", "threads": 1, "seed": 0})
    done = subprocess.run(
        [sys.executable, WORKER, openvino.PIPELINE],
        input=request + "\n",
        capture_output=True,
        text=True,
    )
    assert "error" in json.loads(done.stdout)
    assert not folder.exists()


def run(total: float, recording: float | None = None) -> Run:
    return Run(1, None, None, (), total, None, None, None, recording)


def test_compile_seconds_are_those_that_later_runs_do_not_take() -> None:
    """A first run of 30 s, later ones of 4 to 6, in each of which 500 ms are recording anew."""
    later = [latency._Timed(run(1, 500.0), seconds) for seconds in (4.0, 5.0, 6.0)]
    found = latency._measured(latency._First(None, 30.0), later)
    assert found.compiling == pytest.approx(25.5)
    assert latency._measured(latency._First(None, None), later).compiling is None
    plain = [latency._Timed(run(1), 5.0)]
    assert latency._measured(latency._First(None, 4.0), plain).compiling == 0  # noise, not less


def compiled_by(monkeypatch: pytest.MonkeyPatch, backend: Any) -> None:
    monkeypatch.setattr(runs, "CompileConfig", partial(CompileConfig, backend=backend, mode=None))


def test_stock_is_compiled_on_a_cpu_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens are stock's, and the decoder's step went through the compiler."""
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled_by(monkeypatch, backend)
    model = tiny_llava(layers=4)
    inputs = random_inputs(model, WORK)
    answers = [
        runs.decode(model, inputs, endless=True, max_new_tokens=5, **variant.asked())
        for variant in (Variant(), Variant(static=True))
    ]
    assert torch.equal(*answers)
    assert graphs


def test_a_stock_that_does_not_compile_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(*_: Any) -> Any:
        raise RuntimeError("no C++ compiler\nfound")

    compiled_by(monkeypatch, backend)
    model, dropped = tiny_llava(layers=4), {}
    variants = {"stock": Variant(), COMPILED_STOCK: Variant(static=True)}
    found, _ = latency.measure(
        model, WORK, variants, repeats=1, min_seconds=0, on_drop=dropped.__setitem__
    )
    assert list(found) == ["stock"]
    assert "no C++ compiler" in dropped[COMPILED_STOCK]
    assert "\n" not in dropped[COMPILED_STOCK]
    with pytest.raises(Unavailable):  # where nobody is told
        latency.measure(model, WORK, variants, repeats=1, min_seconds=0)


_THERE = """
import sys, torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForImageTextToText
torch.manual_seed(3)
model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(sys.argv[1])).eval()
more = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": None, "pad_token_id": 0}
print(model.generate(**load_file(sys.argv[2]), **more)[:, -8:].tolist())
"""


@without
@pytest.mark.openvino
@pytest.mark.slow
def test_its_answer_is_that_of_torch_there(tmp_path: Path) -> None:
    """The same random weights, exported or not: two pictures in two rows, eight tokens."""
    config = tiny_config(layers=4)
    inputs = random_inputs(tiny_llava(layers=4), Workload(64, 9, 8, batch=2))
    save_file(inputs, tmp_path / "inputs.safetensors")
    folder = tmp_path / "model"  # a file of tensors beside the configuration would be its weights
    folder.mkdir()
    config.to_json_file(folder / "config.json")
    there = subprocess.run(
        [REAL, "-c", _THERE, folder, tmp_path / "inputs.safetensors"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    requests: list[dict[str, Any]] = [
        {"folder": str(folder), "precision": "f32", "threads": 1, "seed": 3},
        {"inputs": str(tmp_path / "inputs.safetensors"), "new": 8},
    ]
    done = subprocess.run(
        [REAL, WORKER, openvino.PIPELINE],
        input="".join(json.dumps(request) + "\n" for request in requests),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    facts, answer = map(json.loads, done.stdout.splitlines())
    assert (facts["precision"], facts["threads"]) == ("f32", 1)
    assert facts["export_seconds"] > 0
    assert answer["tokens"] == json.loads(there.stdout)
    assert answer["seconds"] == sorted(answer["seconds"])


@without
@pytest.mark.openvino
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_command_with_the_real_one(st3_: Any, tmp_path: Path, dtype: str) -> None:
    (tmp_path / "config.json").write_text(tiny_config(layers=4).to_json_string())
    result = st3_(
        "profile", "--config", tmp_path / "config.json", "--methods", "none,st3", "--text-tokens",
        9, "--new-tokens", 4, "--repeats", 1, "--batch-size", "1,2", "--dtype", dtype, "--openvino",
        REAL, "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    rows = [row for row in json.loads(result.out)["rows"] if row["method"] == OPENVINO]
    assert [row["batch_size"] for row in rows] == [1, 2]
    for row in rows:
        assert 0 < row["ttft_ms"] < row["e2e_ms"]
        assert row["compiling_s"] > row["settings"]["export_seconds"]
        assert (
            row["settings"]["precision"]
            in {"float32": ("f32",), "bfloat16": ("bf16", "f32")}[dtype]
        )


@without
@pytest.mark.openvino
@pytest.mark.slow
def test_a_family_that_it_does_not_export() -> None:
    """One that it does not know, and one that its own transformers does not."""
    for name, said in [("aya_vision", "aya_vision"), ("kimi_k25", "kimi_k25")]:
        tiny = ZOO[name]
        with (
            OpenVino(REAL, tiny.configuration(), torch.float32) as peer,
            pytest.raises(Unavailable, match=said),
        ):
            peer.generate({}, WORK)
