"""Names become models, from checkpoints that the tests make in the Hub's own layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_config, tiny_llava
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, LlamaConfig

import st3
from st3.demo.packaging import build_processor
from st3.inference.checkpoints import find
from st3.inference.loading import find_device, find_dtype, load
from st3.inference.presets import known_config
from st3.inference.random_weights import random_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole checkpoint: configuration, weights, processor."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_llava(layers=4).save_pretrained(folder)
    build_processor().save_pretrained(folder)
    return folder


def test_a_local_folder(checkpoint: Path) -> None:
    model, processor = st3.load(str(checkpoint))
    want = tiny_llava(layers=4).state_dict()
    got = model.state_dict()
    assert all(torch.equal(got[name], want[name]) for name in want)
    assert not model.training
    assert processor.tokenizer.padding_side == "left"
    half, _ = st3.load(str(checkpoint), dtype="bfloat16", attn_implementation="eager")
    assert half.dtype == torch.bfloat16
    assert half.config._attn_implementation == "eager"


def test_names() -> None:
    assert find("7b").place == "llava-hf/llava-1.5-7b-hf"
    assert find("13b", "main").revision == "main"
    assert find("7b@v2").revision == "v2"
    assert find("org/name").place == "org/name"
    assert find("org/name@v1.0").revision == "v1.0"
    assert find("org/name@v1.0").place == "org/name"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("70b", "give demo, 7b, 13b"),
        ("./nowhere", "no folder"),
        ("/nowhere/at/all", "no folder"),
        ("a/b/c", "no folder"),
        ("org/", "unknown model"),
        (__file__, "is a file"),
    ],
)
def test_bad_names(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(name)


def _break(folder: Path, how: str) -> None:
    weights = folder / "model.safetensors"
    if how == "no config":
        (folder / "config.json").unlink()
    elif how == "no weights":
        weights.unlink()
    elif how == "pickled":
        weights.unlink()
        torch.save({}, folder / "pytorch_model.bin")
    elif how == "incomplete":
        tensors = load_file(weights)
        del tensors[sorted(tensors)[0]]
        save_file(tensors, weights, metadata={"format": "pt"})
    elif how == "other family":
        LlamaConfig().save_pretrained(folder)
    elif how == "other decoder":
        config = json.loads((folder / "config.json").read_text())
        config["text_config"] = {"model_type": "gpt_neox"}
        (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no config", "no config.json"),
        ("no weights", r"no \*.safetensors"),
        ("pickled", "pickled weights"),
        ("incomplete", "lacks 1 weights"),
        ("other family", "none that answers questions about pictures"),
        ("other decoder", "takes 'layer_past', which may belong to tokens"),
    ],
)
def test_broken_checkpoints(checkpoint: Path, tmp_path: Path, how: str, message: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint, folder)
    _break(folder, how)
    with pytest.raises(ValueError, match=message):
        load(str(folder))


def test_devices_and_dtypes() -> None:
    assert find_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match="unknown device"):
        find_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="torch sees none"):
            find_device("cuda")
    cpu = torch.device("cpu")
    with pytest.raises(ValueError, match="known: auto, float32"):
        find_dtype("int8", cpu, None)
    assert find_dtype("float16", cpu, None) == torch.float16
    assert find_dtype("auto", cpu, tiny_config()) == torch.float32
    assert find_dtype("auto", cpu, known_config("7b")) == torch.bfloat16


@pytest.mark.parametrize(("name", "millions"), [("7b", 7063), ("13b", 13351)])
def test_built_in_configurations_have_the_published_sizes(name: str, millions: int) -> None:
    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(known_config(name))
    assert round(model.num_parameters() / 1e6) == millions


def test_random_weights() -> None:
    a, b, c = (random_model(tiny_config(), seed=seed) for seed in (0, 0, 1))
    name = "lm_head.weight"
    assert torch.equal(a.state_dict()[name], b.state_dict()[name])
    assert not torch.equal(a.state_dict()[name], c.state_dict()[name])
    assert random_model(tiny_config(), dtype=torch.bfloat16).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="no built-in configuration"):
        known_config("70b")


@pytest.mark.parametrize("known", [True, False])
def test_code_of_a_checkpoint_is_never_run(
    checkpoint: Path, tmp_path: Path, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a family that transformers has, its own code is used; of another, one line says no."""
    folder = tmp_path / "custom"
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    names = ("AutoConfig", "AutoModelForImageTextToText", "AutoProcessor")
    config["auto_map"] = dict.fromkeys(names, "evil.Evil")
    config["model_type"] = config["model_type"] if known else "evil"
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('the code was run')\n")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on stdin"))
    if known:
        model, _ = st3.load(str(folder))
        assert type(model).__module__.startswith("transformers.")
        return
    with pytest.raises(ValueError, match="brings code of its own, which st3 does not run"):
        st3.load(str(folder))
