"""A vLLM server with the plug-in: accuracy, refusals, broken requests and callers who hang up.

`.ci/serving` installs vLLM for it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed", allow_module_level=True)

from st3.demo.held_out import held_out
from st3.demo.packaging import PACKAGE
from st3.serving.load import run
from st3.serving.vllm.measure import accuracy, endurance
from st3.serving.vllm.server import served

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]
ROOT = Path(__file__).parents[2]
MORE = ("--dtype", "bfloat16", "--max-model-len", "2048", "--enforce-eager")
SHARE = {"original": 0.967, "compact": 0.817}
"""Of known answers right with a quarter of the tokens by divprune, as a prototype had it."""


@pytest.mark.parametrize("positions", SHARE)
def test_a_server(positions: str) -> None:
    """Answers as the prototype's, within two standard errors; nothing lost, nothing leaked."""
    settings = {"keep": 0.25, "method": "divprune", "positions": positions}
    with served(str(PACKAGE), settings, MORE) as server:
        assert "576 tokens become 144" in server.log.read_text(encoding="utf-8")
        found = accuracy(lambda asks: run(server.url, asks, 16).answers)
        assert not found["lost"], found
        share = SHARE[positions]
        error = (share * (1 - share) / found["asked"]) ** 0.5
        assert found["right"] / found["asked"] >= share - 2 * error, found
        if positions == "original":
            lasted = endurance(server)
            assert lasted["answered"] == lasted["of"], lasted
            assert lasted["refused"] == lasted["broken"] == 20, lasted
            assert lasted["alive"], lasted
            assert lasted["answers_again"], lasted
            filled, *_, last = lasted["memory_bytes"][2:]
            assert last < 1.05 * filled, lasted


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ('{"st3": {"keep": 1.5, "method": "divprune"}}', "st3: keep is a share"),
        (
            '{"st3": {"keep": 0.5, "method": "cdpruner"}}',
            "st3: method 'cdpruner' needs the question",
        ),
    ],
)
def test_what_cannot_be_is_refused_at_start_up(given: str, said: str) -> None:
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(PACKAGE),
        "--hf-overrides", given,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith(said)


def test_batch_answers_as_other_engines_and_goes_on_with_them(tmp_path: Path) -> None:
    """In float32: the same file, also where vLLM is killed half way and another goes on."""
    asked = []
    for one in held_out(2, 0):
        one.picture.save(tmp_path / f"{one.number}.png")
        asked.append({"image": f"{one.number}.png", "prompt": one.question.prompt})
    asked[3]["image"] = "none.png"
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in asked), encoding="utf-8")

    def start(output: str, *options: str) -> subprocess.Popen[str]:
        command = [
            sys.executable, "-m", "st3_cli", "batch", str(rows), "--output", str(tmp_path / output),
            "--max-new-tokens", "8", "--method", "divprune:keep=0.25", "--dtype", "float32",
            "--json", *options,
        ]  # fmt: skip
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def end(started: subprocess.Popen[str]) -> Any:
        document, said = started.communicate()
        assert started.returncode == 0, said
        return json.loads(document)  # and nothing else

    assert end(start("vllm.jsonl", "--engine", "vllm"))["errors"] == 1
    assert end(start("local.jsonl", "--workers", "0"))["errors"] == 1
    whole = (tmp_path / "local.jsonl").read_text(encoding="utf-8")
    assert (tmp_path / "vllm.jsonl").read_text(encoding="utf-8") == whole

    killed = start("killed.jsonl", "--engine", "vllm", "--batch-size", "1")
    output = tmp_path / "killed.jsonl"
    while not output.exists() or output.read_bytes().count(b"\n") < 5:
        assert killed.poll() is None, "it ended before it was killed"
        time.sleep(0.01)
    family = psutil.Process(killed.pid).children(recursive=True)
    assert family, "vLLM has processes of its own"
    killed.kill()
    killed.communicate()
    _, left = psutil.wait_procs(family, timeout=60)
    assert not left, "an engine was left behind"
    assert 5 <= end(start("killed.jsonl", "--workers", "0"))["before"] < len(asked)
    assert output.read_text(encoding="utf-8") == whole
