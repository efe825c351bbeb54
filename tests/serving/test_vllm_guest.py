"""A host's stdout is its own, and what it started ends with it: without vLLM."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
NOISY = """
import json, os, subprocess, sys
from st3.serving.vllm.guest import guest
print("before")
with guest():
    print("noise")
    os.write(1, b"noise\\n")
    subprocess.run([sys.executable, "-c", "print('noise')"], check=True)
print(json.dumps({"rows": 1}))
"""
HOST = """
import multiprocessing, os, sys, time
from st3.serving.vllm.guest import end_with_parent, guest

def engine(file):
    end_with_parent()
    with open(file, "w") as out:
        out.write(str(os.getpid()))
    os.rename(file, file + ".ready")
    time.sleep(600)

if __name__ == "__main__":
    with guest():
        child = multiprocessing.get_context("spawn").Process(target=engine, args=sys.argv[1:])
        child.start()
        child.join()
"""


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


def test_stdout_is_the_hosts() -> None:
    command = [sys.executable, "-c", NOISY]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["before", json.dumps({"rows": 1})]
    assert done.stderr.count("noise") == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_engine_ends_with_its_host(number: signal.Signals, tmp_path: Path) -> None:
    script, file = tmp_path / "host.py", tmp_path / "engine"
    script.write_text(HOST, encoding="utf-8")
    with subprocess.Popen([sys.executable, str(script), str(file)], env=_environment()) as host:
        ready = Path(f"{file}.ready")
        end = time.monotonic() + 120
        while not ready.exists():
            assert host.poll() is None, "it ended by itself"
            assert time.monotonic() < end, "the engine never came"
            time.sleep(0.02)
        engine = psutil.Process(int(ready.read_text(encoding="utf-8")))
        host.send_signal(number)
        host.wait(60)
    psutil.wait_procs([engine], timeout=60)
    assert not engine.is_running()
