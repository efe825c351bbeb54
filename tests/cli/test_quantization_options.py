"""--quantization and --device-map: of every command that loads a model, and each error a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_checkpoint

pytest.importorskip("torchao")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("plain"))


def test_run(st3_: Any, checkpoint: Path) -> None:
    done = st3_(
        "run", "demo", "what?", "--model", checkpoint, "--quantization", "torchao-int8", "--json",
        "--device", "cpu", "--max-new-tokens", 3,
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out)["new_tokens"] == 3


@pytest.mark.parametrize("command", ["run", "chat", "attention-map", "sweep"])
def test_wrong_usage(st3_: Any, command: str) -> None:
    done = st3_(command, "--quantization", "int3")
    assert done.code == 2
    assert "bnb-4bit" in done.err
    if command == "chat":
        return
    done = st3_(command, "--device", "cpu", "--device-map", "auto")
    assert done.code == 2
    assert done.err == "st3: --device-map takes the place of --device: give one of them\n"


def test_a_map_that_splits_a_layer(st3_: Any, checkpoint: Path) -> None:
    split = {"": "cpu", "model.language_model.layers.1.mlp": "disk"}
    done = st3_("run", "demo", "what?", "--model", checkpoint, "--device-map", json.dumps(split))
    assert done.code == 1
    assert done.err == (
        "st3: the device map splits model.language_model.layers.1 over cpu and disk: a layer must "
        "lie on one device\n"
    )


def test_a_sweep_that_cannot_be_leaves_no_folder(st3_: Any, tmp_path: Path) -> None:
    for device_map, code in (("nosuch", 2), ('{"": "cuda:99"}', 1), ("[]", 2)):
        folder = tmp_path / "sweep"
        result = st3_("sweep", "--scenes", 1, "--device-map", device_map, "--output", folder)
        assert result.code == code
        assert result.err.count("\n") == 1
        assert not folder.exists()


def test_tensor_parallel_alone(st3_: Any) -> None:
    result = st3_("run", "--tensor-parallel")
    assert result.code == 2
    assert "torchrun --nproc-per-node 2" in result.err
    result = st3_("run", "-", "What?", "--tensor-parallel")
    assert result.code == 2
    assert "cannot share standard input" in result.err
