"""Bytes by device: predicted ones against a live model that lies so."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from families.zoo import ZOO

from st3.families.meta import meta_model
from st3.families.parts import find_parts
from st3.inference.weights import live_bytes
from st3.methods import make_method
from st3.profiling.costs import kv_by_layer
from st3.profiling.course import course_of, schedule_of
from st3.profiling.layers import layers_of
from st3.profiling.placement import dispatched, kv_by_device, places_for, weights_by_device
from st3.profiling.shape import Workload

DISK = torch.device("meta")


@pytest.mark.parametrize("name", ["llava", "qwen3_vl", "gemma3"])
def test_weights_on_a_disk(name: str) -> None:
    """Two of six layers wait on a disk."""
    model = ZOO[name].build()
    decoder = find_parts(model).decoder
    prefix = next(key for key, module in model.named_modules() if module is decoder)
    where = {"": "cpu", f"{prefix}.layers.1": "disk", f"{prefix}.layers.4": "disk"}
    places = places_for(where, model.config)
    found = weights_by_device(model.config, torch.float32, None, places)
    late = [p for n in (1, 4) for p in decoder.layers[n].parameters()]
    assert found["offloaded"] == sum(p.nbytes for p in late)
    assert sum(found.values()) == live_bytes(model)["cpu"]
    each = [10, 20, 30, 40, 50, 60]
    assert kv_by_device(model.config, each, places) == {"cpu": 210}


def test_keys_lie_where_layers_compute() -> None:
    """A map of two devices that are not here, as for a machine that is."""
    config = ZOO["llava"].configuration()
    model = meta_model(config)
    prefix = next(k for k, m in model.named_modules() if m is find_parts(model).decoder)
    first, second = torch.device("cuda:0"), torch.device("cuda:1")
    places = {"": first} | {f"{prefix}.layers.{n}": second for n in (3, 4, 5)}
    work = Workload(visual=32, text=20, new=3)
    method = make_method("pvtp", prune_ratio=0.5, stride=1, ratio=0.15)
    layers = layers_of(model)
    course = course_of(layers, schedule_of(method, find_parts(model), work), work)
    each = kv_by_layer(layers, course, 2, 4, "int8")
    found = kv_by_device(config, each, places)
    assert found == {"cuda:0": sum(each[:3]), "cuda:1": sum(each[3:])}
    assert each[0] > each[3] > each[5]
    # Beside a GPU nothing computes in main memory, or on a disk, wherever the map begins.
    waiting = {"lm_head": torch.device("cpu")} | places
    waiting |= {f"{prefix}.layers.0": torch.device("cpu"), f"{prefix}.layers.1": DISK}
    assert kv_by_device(config, each, waiting) == found


def test_a_strategy_is_worked_out() -> None:
    config = ZOO["llava"].configuration()
    places = places_for("auto", config)
    assert {device.type for device in places.values()} <= {"cpu", "cuda"}
    found = weights_by_device(config, torch.float32, None, places)
    assert sum(found.values()) == sum(
        weights_by_device(config, torch.float32, None, {"": torch.device("cpu")}).values()
    )


def test_random_weights_have_no_disk() -> None:
    model = ZOO["llava"].build()
    with pytest.raises(ValueError, match="leave disk out of the device map"):
        dispatched(model, {"": DISK})


def test_profile_by_device(st3_: Any) -> None:
    where = json.dumps({"": "cpu", "model.language_model.layers.7": "disk"})
    result = st3_(
        "profile", "--device-map", where, "--methods", "none,st3:kv_cache_dtype=int8",
        "--new-tokens", 2, "--repeats", 1, "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    rows = json.loads(result.out)["rows"]
    for row in rows:
        assert sum(row["kv_bytes_by_device"].values()) == row["kv_bytes"]
        assert sum(row["weights_bytes_by_device"].values()) == row["weights_bytes"]
        assert row["weights_bytes_by_device"]["offloaded"] > 0
        assert row["ttft_ms"] > 0
    assert rows[2]["kv_ratio"] < 0.2
    shown = st3_("profile", "--device-map", where, "--methods", "st3", "--no-latency")
    assert "Bytes by device" in shown.out
    assert "offloaded" in shown.out
    both = st3_("profile", "--device-map", "auto", "--device", "cpu")
    assert both.code == 2
    assert "--device-map takes the place of --device" in both.err
