"""`st3 batch --engine ray`: the same file; `.ci/ray` installs Ray for it."""

from __future__ import annotations

import importlib.util
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_checkpoint
from killers import Weighing
from killing import ROOT, make_rows

from st3 import demo
from st3.batch import asking
from st3.batch.asking import Course
from st3.batch.preparing import Preparer
from st3.batch.ray_engine import Actor, chunk_of
from st3.batch.row import Row
from st3.inference.fitting import room_of
from st3.methods import make_method

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


def test_an_actor_remembers_what_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over what it is handed: a device that holds three rows, and three calls."""
    options = {"max_new_tokens": 1, "batch_size": None, "cuda_graphs": False, "compile": "off"}
    loading = {"name": str(tiny_checkpoint(tmp_path)), "device": "cpu"}
    actor = Actor(loading, make_method("st3"), options)
    real, sizes = asking.decode_rows, list[int]()

    def limited(model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
        sizes.append(len(inputs))
        if len(inputs) > 3:
            raise RuntimeError("CUDA out of memory")
        return real(model, inputs, *rest, **more)

    monkeypatch.setattr(asking, "decode_rows", limited)
    preparer = Preparer(actor.asker.processor, room_of(actor.asker.model))
    course, found = Course(), []
    for start in (0, 8, 16):
        rows = [Row(n, "how many", (demo.PICTURE,), number=n) for n in range(start, start + 8)]
        made = actor({"prepared": [pickle.dumps(preparer(row)) for row in rows]})
        course.add(pickle.loads(made["course"][0]))
        found += pickle.loads(made["found"][0])
    assert sorted(result.number for result in found) == [*range(24)]
    assert all(result.error is None for result in found)
    assert sizes == [4, *[2] * 12]
    assert (course.answered, course.batches, course.new_tokens) == (24, 12, 24)
    assert course == actor.asker.course


def test_what_an_actor_is_handed_at_a_time(tmp_path: Path) -> None:
    """Two batches, a share, or 2 GB of what the first row becomes; a broken one has no size."""
    rows = [Row(n, "q", number=n) for n in range(1000)]
    light: Any = Weighing(tmp_path, 1000)
    assert chunk_of(rows, light, 256, 1) == 512
    assert chunk_of(rows, light, 16, 1) == 32
    assert chunk_of(rows, light, 256, 4) == 250
    assert chunk_of(rows[:1], light, 256, 4) == 1
    heavy: Any = Weighing(tmp_path, 200_000_000)
    assert chunk_of(rows, heavy, 256, 1) == 10
    assert chunk_of(rows, Weighing(tmp_path, 0), 256, 1) == 512  # type: ignore[arg-type]


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
