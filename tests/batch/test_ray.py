"""`st3 batch --engine ray`: the same file; `.ci/ray` installs Ray for it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from killing import ROOT, make_rows

from st3 import demo

RAY = importlib.util.find_spec("ray") is not None


def test_without_ray_the_extra_is_named(
    tmp_path: Path, st3_: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    result = st3_(
        "batch", demo.PICTURE, "--prompt", "q", "--output", tmp_path / "a.jsonl", "--engine", "ray"
    )
    assert result.code == 1
    assert 'pip install "st3[ray]"' in result.err
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not RAY, reason="Ray is not installed")
def test_two_actors_give_the_file_of_one_process(tmp_path: Path) -> None:
    rows = make_rows(tmp_path, 12)

    def run(output: str, *options: str) -> bytes:
        command = [
            sys.executable, "-m", "st3_cli", "batch", str(rows), "--output", str(tmp_path / output),
            "--max-new-tokens", "3", *options,
        ]  # fmt: skip
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return (tmp_path / output).read_bytes()

    local = run("local.jsonl", "--workers", "0")
    assert local.count(b"\n") == 12
    assert run("ray.jsonl", "--engine", "ray", "--ray-actors", "2") == local
