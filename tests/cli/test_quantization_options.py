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
