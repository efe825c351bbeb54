"""Sweeps: the grid, fidelity against free runs, and that stopping costs nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import slow, tiny_checkpoint
from PIL import Image

import st3
from st3 import demo
from st3.demo.tasks import TASKS
from st3.methods import make_method
from st3.sweep import results
from st3.sweep.fidelity import outcomes, references
from st3.sweep.grid import make_grid, signature
from st3.sweep.questions import demo_questions, file_questions, folder_questions

SETTINGS = [
    "--strides", "6,9,12", "--ratios", "0.05,0.1,0.2", "--methods", "vtw:k=3",
    "--max-new-tokens", "12",
]  # fmt: skip
COMMAND = ["sweep", "--scenes", "1", *SETTINGS]
TIMES = ("ttft_ms", "tpot_ms", "answer_ms")


@pytest.fixture(scope="module")
def packaged() -> Any:
    return st3.load("demo", device="cpu")


def untimed(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in TIMES} for row in cells]


def test_the_grid() -> None:
    cells = make_grid(12, [2, 3], [0.1, 0.15], [128, None], peers=["fastv"])
    assert [(c.stride, c.ratio, c.tau) for c in cells] == [
        (2, 0.1, 128), (2, 0.15, 128), (3, 0.1, 128), (3, 0.15, 128),
        (2, 0.1, None), (2, 0.15, None), (3, 0.1, None), (3, 0.15, None), (None, None, None),
    ]  # fmt: skip
    # C = 1 - P - floor(9 / S) R
    assert [c.final_keep for c in cells[:4]] == pytest.approx([0.1, -0.1, 0.2, 0.05])
    assert [c.problem is None for c in cells[:4]] == [True, False, True, True]
    assert "C = -0.1 < 0" in str(cells[1].problem)
    with pytest.raises(ValueError, match="largest R for this S"):
        _ = cells[1].method
    assert cells[3].method.schedule(12) == make_method("st3").schedule(12)


def test_ratios_follow_from_a_wanted_c() -> None:
    cells = make_grid(32, [1, 4, 40], [], [128], finals=[0.01])
    assert [cell.ratio for cell in cells] == pytest.approx([0.49 / 29, 0.07, None])
    assert cells[2].problem is not None
    assert all(cell.method.schedule(32).keeps[-1] == pytest.approx(0.01) for cell in cells[:2])


def test_equal_settings_have_one_signature() -> None:
    cells = make_grid(12, [10, 11], [0.1, 0.2], [64, None], peers=["pvtp:stride=10,ratio=0"])
    found = [signature(cell, 12) for cell in cells]
    assert len(set(found[:4])) == 1  # no second cut: R and S say nothing
    assert found[4] == found[8]  # st3 that does not anneal is pvtp
    assert found[0] != found[4]
    with pytest.raises(ValueError, match="the grid is empty"):
        make_grid(12, [], [0.1], [64])


def test_every_question_has_a_picture_of_its_own() -> None:
    """Intervals take answers as independent; about one picture they are not."""
    found = demo_questions(3 * len(TASKS), 5)
    assert len({question.picture.tobytes() for question in found}) == len(found)
    tasks = [question.label.partition(", ")[2] for question in found]
    asked = [(tasks[n], tasks.count(task)) for n, task in enumerate(TASKS)]
    assert all(2 <= count <= 5 for _, count in asked), asked
    assert tasks[:3] == [*TASKS][:3]


@pytest.mark.parametrize("spec", ["vtw:k=3", "fastv:r=0.97", "random:final_keep=0", "none"])
def test_forcing_tells_what_a_free_run_says(packaged: Any, spec: str) -> None:
    """Same answers, agreement and KL from one forced run = from free runs and stepwise logits."""
    model, processor = packaged
    questions = demo_questions(6, 11)
    method = make_method(spec)
    for reference in references(model, processor, questions, batch=4, max_new_tokens=10):
        found = outcomes(model, processor, reference, method, 10)
        with st3.trim(model, method), torch.inference_mode():
            free = model.generate(**reference.inputs, max_new_tokens=10, do_sample=False)
        start = reference.inputs["input_ids"].shape[1]
        for row, outcome in enumerate(found):
            length = reference.lengths[row]
            theirs = reference.tokens[row, :length].tolist()
            ours = free[row, start : start + length].tolist()
            equal = [a == b for a, b in zip(ours, theirs, strict=False)]
            first = equal.index(False) if False in equal else length
            assert outcome.agreed == pytest.approx(first / length)
            assert outcome.same == (first == length)
            text = processor.tokenizer.decode(free[row, start:], skip_special_tokens=True).strip()
            assert outcome.text == text
            assert outcome.right == (text == reference.questions[row].answer)
            if spec == "none":
                assert outcome.kl == pytest.approx(0, abs=1e-6)
                assert outcome.same


def test_kl_is_that_of_the_forced_distributions(packaged: Any) -> None:
    """Against a forward of prompt and answer at once, where nothing depends on time."""
    model, processor = packaged
    method = make_method("vtw:k=3")
    (reference,) = references(model, processor, demo_questions(1, 3)[:1], batch=1, max_new_tokens=8)
    (outcome,) = outcomes(model, processor, reference, method, 8)
    length, inputs = reference.lengths[0], reference.inputs
    logits = []
    with torch.inference_mode():
        for trimmed in (False, True):
            rows = []
            for step in range(length):
                ids = torch.cat((inputs["input_ids"], reference.tokens[:, :step]), dim=1)
                full = {"input_ids": ids, "pixel_values": inputs["pixel_values"]}
                if trimmed:
                    with st3.trim(model, method):
                        rows.append(
                            model(**full, attention_mask=torch.ones_like(ids)).logits[0, -1]
                        )
                else:
                    rows.append(model(**full).logits[0, -1])
            logits.append(torch.stack(rows).double().log_softmax(-1))
    kl = (logits[0].exp() * (logits[0] - logits[1])).sum(-1).mean()
    assert outcome.kl == pytest.approx(float(kl), rel=1e-3)


def test_the_default_grid_and_its_files(st3_: Any, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    budget = "fidelity>=50%,kv<=60%"
    result = st3_(*COMMAND, "--output", out, "--json", "--budget", budget)
    assert result.code == 0, result.err
    document = json.loads(result.out)
    cells = {row["spec"]: row for row in document["cells"]}
    assert len(cells) == 10
    assert "problem" in cells["st3:stride=6,ratio=0.2,tau=128"]
    assert "fidelity" not in cells["st3:stride=6,ratio=0.2,tau=128"]
    good = cells["st3:stride=9,ratio=0.1,tau=128"]
    schedule = make_method("st3", stride=9, ratio=0.1).schedule(32)
    assert good["mean_keep"] == pytest.approx(schedule.mean_keep)
    base = document["baseline"]
    alive = sum(schedule.count(n, 576) + base["text_tokens"] for n in range(1, 33))
    assert good["kv_ratio"] == pytest.approx(alive / (32 * (576 + base["text_tokens"])))
    assert good["fidelity"] == 1
    assert good["accuracy"] == base["accuracy"]
    assert good["accuracy_low"] <= good["accuracy"] <= good["accuracy_high"]
    assert good["ttft_ms"] > 0
    assert cells["vtw:k=3"]["kl"] > 0.1 > good["kl"]
    assert cells["vtw:k=3"]["differences"]
    assert set(document["files"]) < {path.name for path in out.iterdir()}
    assert {"heatmaps.png", "pareto.png", "sweep.csv", "sweep.md", "chosen.json"} <= {
        path.name for path in out.iterdir()
    }
    chosen = json.loads((out / "chosen.json").read_text())
    assert chosen["method"] == document["chosen"]["spec"]
    fitting = [r for r in cells.values() if r.get("kv_ratio", 1) <= 0.6 and r["fidelity"] >= 0.5]
    assert document["chosen"]["answer_ms"] == min(row["answer_ms"] for row in fitting)
    run = st3_("run", "--settings", out / "chosen.json", "--json", "--max-new-tokens", 2)
    assert json.loads(run.out)["settings"]["stride"] == document["chosen"]["stride"]
    # The same command finds everything done, and says the same.
    again = st3_(*COMMAND, "--output", out, "--json", "--budget", budget)
    assert json.loads(again.out)["cells"] == document["cells"]
    other = st3_(*COMMAND, "--output", out, "--seed", "1")
    assert other.code == 2
    assert "seed: there 0, here 1" in other.err
    assert len(other.err.strip().splitlines()) == 1


def few(folder: Path) -> list[str]:
    """The same sweep over a few questions, where what they are does not matter."""
    path = folder / "questions.jsonl"
    prompts = ("how many?", "describe", "where is the star?", "describe the picture in detail")
    lines = [json.dumps({"image": str(demo.PICTURE), "prompt": p, "answer": "?"}) for p in prompts]
    path.write_text("\n".join(lines))
    return ["sweep", "--data", str(path), *SETTINGS]


def spawn(out: Path, *more: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable, "-m", "st3_cli.app", *few(out.parent), "--output", str(out), "--json",
            *more,
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )  # fmt: skip


def lines(out: Path) -> int:
    path = out / "cells.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """That sweep in one go."""
    text, err = spawn(tmp_path_factory.mktemp("whole") / "whole", "--device", "cpu").communicate()
    assert text, err
    found: dict[str, Any] = json.loads(text)
    return found


@pytest.mark.parametrize("how", [signal.SIGKILL, *slow(signal.SIGINT)])
def test_stopping_and_going_on_changes_nothing(
    how: signal.Signals, whole: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "stopped"
    process = spawn(out)
    while lines(out) < 1 and process.poll() is None:
        time.sleep(0.005)
    time.sleep(0.3)  # into the next cell
    process.send_signal(how)
    _, err = process.communicate()
    done = lines(out)
    assert 1 <= done < 9
    if how is signal.SIGINT:
        assert process.returncode == 130
        assert "goes on in" in err
        assert json.loads((out / "sweep.json").read_text())["interrupted"] is True
    with (out / "cells.jsonl").open("a") as file:
        file.write('{"spec": "st3:stride=4,rat')  # as a kill in mid-write would leave it
    finished = spawn(out)
    text, err = finished.communicate()
    assert finished.returncode == 0, err
    assert untimed(json.loads(text)["cells"]) == untimed(whole["cells"])
    assert lines(out) == 9  # untrimmed, seven that can be of nine, one peer


@pytest.mark.slow
def test_two_processes_equal_one(whole: dict[str, Any], tmp_path: Path) -> None:
    together = subprocess.run(
        [
            sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2",
            "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
            "--main_process_port", "0", "--module", "st3_cli.app",
            *few(tmp_path), "--output", str(tmp_path / "two"), "--device", "cpu",
        ],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert together.returncode == 0, together.stderr
    both = json.loads((tmp_path / "two" / "sweep.json").read_text())
    assert untimed(both["cells"]) == untimed(whole["cells"])
    assert both["pareto"] == whole["pareto"]


def picture(path: Path) -> Path:
    Image.open(demo.PICTURE).save(path)
    return path


def test_a_folder_of_pictures(st3_: Any, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    picture(images / "a.png")
    (images / "b.jpg").write_bytes(b"no picture")
    (images / "notes.txt").write_text("ignored")
    result = st3_(
        "sweep", "--images", images, "--prompt", "how many objects are there?", "--strides", "3",
        "--ratios", "5%", "--output", tmp_path / "out", "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert "skipped b.jpg" in result.err
    document = json.loads(result.out)
    assert document["baseline"]["questions"] == 1
    assert document["baseline"]["accuracy"] is None
    assert document["cells"][0]["accuracy"] is None
    (images / "a.png").unlink()
    with pytest.raises(ValueError, match="none of its 1 pictures can be read"):
        folder_questions(images, "?")


def test_a_file_of_questions(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    path = tmp_path / "q.jsonl"
    path.write_text(
        '{"image": "a.png", "prompt": "how many?", "answer": "four"}\n\n'
        '{"image": "gone.png", "prompt": "how many?"}\n{"image": "a.png", "prompt": "describe"}\n'
    )
    found, skipped = file_questions(path)
    assert [(q.prompt, q.answer, q.label) for q in found] == [
        ("how many?", "four", "line 1"), ("describe", None, "line 4"),
    ]  # fmt: skip
    assert skipped[0].startswith("line 3: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"image": "a.png"', "line 1: no JSON"),
        ('\n{"image": "a.png"}', 'line 2: "prompt" must be a text'),
        ('{"image": "a.png", "prompt": "?", "answer": 4}', '"answer" must be a text'),
        ("[1]", '"image" must be a text'),
        ('{"image": "gone.png", "prompt": "?"}', "no line with a picture that can be read"),
    ],
)
def test_broken_lines(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        file_questions(path)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--strides", "0"], 2, "whole number from 1 on"),
        (["--ratios", "0.1:0.05:0.01"], 2, "first:last:step"),
        (["--ratios", "x"], 2, "give a share"),
        (["--strides", "1", "--ratios", "0.2"], 2, "no cell of the grid can be"),
        (["--taus", "soon"], 2, "or none"),
        (["--methods", "magic"], 2, "unknown method"),
        (["--ratios", "0.05", "--final-keep", "5%"], 2, "give one of them"),
        (["--images", "x"], 2, "--images and --prompt go together"),
        (["--images", "nowhere", "--prompt", "?"], 1, "no folder nowhere"),
        (["--data", "gone.jsonl"], 1, "cannot read gone.jsonl"),
        (["--data", "x", "--images", "y", "--prompt", "?"], 2, "give one of them"),
        (["--model", "./nowhere"], 1, "no folder ./nowhere"),
        (["--budget", "speed>=2"], 2, "unknown 'speed'; known: fidelity"),
        (["--budget", "fidelity=1"], 2, "write it as fidelity>=0.99"),
        (["--output", __file__], 2, "is a file"),
        (["--output", str(Path(__file__).parent)], 2, "holds other files"),
        (["--scenes", "0"], 2, "scenes"),
    ],
)
def test_bad_input_is_one_line(
    st3_: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], code: int,
    message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    result = st3_("sweep", *arguments)
    assert result.code == code
    assert message in result.err
    assert result.out == ""
    assert len(result.err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_budget_for_accuracy_needs_answers(st3_: Any, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    path = tmp_path / "q.jsonl"
    path.write_text('{"image": "a.png", "prompt": "how many?"}')
    result = st3_("sweep", "--data", path, "--budget", "accuracy>=0.9")
    assert result.code == 2
    assert "line 1 has no answer" in result.err


def test_settings_that_make_no_sense(st3_: Any, tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text('{"method": "fastv:k=3"}')
    for arguments, message in (
        (["--settings", path, "--method", "vtw"], "--settings and --method both say"),
        (["--settings", path, "--tau", "5"], "--settings and --tau both say"),
        (["--settings", tmp_path / "gone.json"], "cannot read"),
        (["--settings", demo.PICTURE], 'has no "method"'),
    ):
        for command in ("run", "profile", "attention-map"):
            result = st3_(command, *arguments)
            assert result.code == 2
            assert message in result.err
            assert len(result.err.strip().splitlines()) == 1


def rows(*cells: tuple[float, float, float]) -> list[dict[str, Any]]:
    return [
        {
            "spec": str(n), "prefill_macs_ratio": macs, "fidelity": same, "answer_ms": time,
            "kv_ratio": macs, "accuracy": None,
        }
        for n, (macs, same, time) in enumerate(cells)
    ]  # fmt: skip


def test_pareto_and_budget() -> None:
    cells = rows((0.5, 0.9, 5), (0.4, 0.9, 6), (0.6, 1.0, 9), (0.3, 0.2, 1), (0.7, 1.0, 2))
    cells.append({"spec": "cannot", "problem": "C < 0", "final_keep": -1})
    assert results.pareto(cells) == ["3", "1", "2"]
    budget = results.parse_budget("fidelity>=90%, macs <= 0.6")
    assert budget == [("fidelity", ">=", 0.9), ("prefill_macs_ratio", "<=", 0.6)]
    chosen = results.within(cells, budget)
    assert chosen is not None
    assert chosen["spec"] == "0"
    assert results.within(cells, results.parse_budget("fidelity>=1,kv<=50%")) is None
    assert results.within(cells, results.parse_budget("accuracy>=0")) is None


def test_interval_of_accuracy() -> None:
    """Near the binomial one: 80 of 100."""
    from st3.sweep.fidelity import accuracy

    found = accuracy([True] * 80 + [False] * 20)
    deviation = np.sqrt(0.8 * 0.2 / 100)
    assert found["accuracy"] == 0.8
    assert found["accuracy_low"] == pytest.approx(0.8 - 1.96 * deviation, abs=0.015)
    assert found["accuracy_high"] == pytest.approx(0.8 + 1.96 * deviation, abs=0.015)


def test_any_model_may_be_swept(tmp_path: Path, st3_: Any) -> None:
    """Another depth and grid of patches, no labels."""
    tiny_checkpoint(tmp_path / "model")
    (tmp_path / "images").mkdir()
    picture(tmp_path / "images" / "a.png")
    picture(tmp_path / "images" / "b.png")
    result = st3_(
        "sweep", "--model", tmp_path / "model", "--images", tmp_path / "images",
        "--prompt", "hello", "--strides", "1", "--ratios", "0.01:0.11:0.05",
        "--taus", "4,none", "--max-new-tokens", 6,
        "--output", tmp_path / "out", "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    document = json.loads(result.out)
    assert len(document["cells"]) == 6
    assert (tmp_path / "out" / "tau.png").exists()
    assert (tmp_path / "out" / "heatmaps-tau-none.png").exists()
    result = st3_("sweep", "--model", tmp_path / "model")
    assert "only the demo has questions of its own" in result.err


@pytest.mark.parametrize("layers", [24, 28, 32, 40, 48, 64, 80])
def test_the_default_grid_suits_any_depth(layers: int) -> None:
    """Every cell can be, ends at the C that was asked for, and no two are the same."""
    import inspect

    from st3_cli import sweep as command
    from st3_cli.grid_options import FINALS

    strides = inspect.signature(command.sweep).parameters["strides"].default
    cells = make_grid(layers, [int(s) for s in strides.split(",")], (), [128], finals=FINALS)
    assert [cell.problem for cell in cells] == [None] * 16
    assert [cell.final_keep for cell in cells] == pytest.approx(4 * list(FINALS))
    assert len({signature(cell, layers) for cell in cells}) == 16
