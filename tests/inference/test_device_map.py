"""Device maps: what they may say, and how they reach accelerate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import greedy, prompts, tiny_checkpoint, tiny_config

import st3
from st3.inference.device_map import DISK, places_of, read_device_map
from st3.inference.loading import check_whole
from st3.inference.quantization import QUANTIZATIONS
from st3.inference.weights import live_bytes

LAYER = "model.language_model.layers.2"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize(
    ("device_map", "message"),
    [
        ("best", "unknown device_map 'best'; known: auto, balanced, sequential"),
        ({"": "gpu"}, "unknown device 'gpu'"),
        ({"": None}, "unknown device None"),
        ({"": "cuda:99"}, "names cuda:99, and torch sees"),
        ({"": 99}, "names cuda:99, and torch sees"),
        ({"model.vision_tower": "cpu"}, "leaves .* weights without a device"),
        ({"": "cpu", "model.nothing": "cpu"}, "names 'model.nothing', which the model does not"),
        ({"": "cpu", f"{LAYER}.self_attn": "disk"}, f"splits {LAYER} over cpu and disk"),
        ({"": "cpu", f"{LAYER}.mlp.up_proj.weight": "disk"}, f"splits {LAYER} over cpu and disk"),
        (
            {"": "cpu", "model.vision_tower.encoder.layers.1.mlp": "disk"},
            "splits model.vision_tower.encoder.layers.1 over",
        ),
    ],
)
def test_maps_that_cannot_be(device_map: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        places_of(device_map, tiny_config(layers=4))


def test_prefixes_become_modules_apart() -> None:
    cpu = torch.device("cpu")
    assert places_of({"": "cpu"}, tiny_config()) == {"": cpu}
    assert places_of("auto", tiny_config()) == "auto"
    places = places_of({"": "cpu", "model.language_model": "disk", "lm_head": "cpu"}, tiny_config())
    assert places == {
        "model.vision_tower": cpu,
        "model.multi_modal_projector": cpu,
        "model.language_model": DISK,
        "lm_head": cpu,
    }


def test_maps_are_read(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_text(json.dumps({"": 0}))
    assert read_device_map(str(path)) == {"": 0}
    assert read_device_map(' {"": "cpu"}') == {"": "cpu"}
    assert read_device_map("balanced") == "balanced"
    for text, message in (
        ("all", "unknown device map 'all': give auto"),
        ("{'': 0}", "is no JSON"),
        (str(path.with_name("list.json")), "unknown device map"),
    ):
        with pytest.raises(ValueError, match=message):
            read_device_map(text)
    path.write_text("[1]")
    with pytest.raises(ValueError, match="no JSON object"):
        read_device_map(str(path))


def test_a_layer_on_disk_answers_as_in_memory(checkpoint: Path) -> None:
    whole, _ = st3.load(str(checkpoint), device_map="auto")
    parts, _ = st3.load(str(checkpoint), device_map={"": "cpu", LAYER: "disk"})
    bytes_of = live_bytes(parts)
    assert bytes_of["offloaded"] == sum(
        weight.numel() * 4 for weight in whole.get_submodule(LAYER).parameters()
    )
    assert sum(bytes_of.values()) == sum(live_bytes(whole).values())
    inputs = prompts("ttIttt")
    inputs["input_ids"][inputs["input_ids"] == 99] = whole.config.image_token_id
    answers = [greedy(model, inputs, 4).sequences for model in (whole, parts)]
    assert torch.equal(*answers)


def test_a_device_and_a_map(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="both say where weights lie"):
        st3.load(str(checkpoint), device="cpu", device_map="auto")


def test_weights_in_few_bits_do_not_wait() -> None:
    with pytest.raises(ValueError, match="torchao-int8 cannot wait on a disk"):
        st3.load("demo", quantization="torchao-int8", device_map={"": "cpu", "lm_head": "disk"})
    how, gpu, cpu = QUANTIZATIONS["bnb-4bit"], torch.device("cuda:0"), torch.device("cpu")
    check_whole(how, {"model": gpu, "lm_head": torch.device("cuda:1")})
    check_whole(how, {"": cpu})
    check_whole(None, {"model": gpu, "lm_head": cpu})
    with pytest.raises(ValueError, match="beside a GPU, in main memory"):
        check_whole(how, {"model": gpu, "lm_head": cpu})


@pytest.mark.parametrize("device_map", [0, ["cpu"], torch.device("cpu")])
def test_what_is_no_map(device_map: Any) -> None:
    with pytest.raises(ValueError, match="give a strategy, or a mapping of modules to devices"):
        st3.load("demo", device_map=device_map)
