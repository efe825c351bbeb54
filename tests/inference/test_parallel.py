"""Loading over several processes: plans, refusals, and the command under torchrun."""

from __future__ import annotations

import json
from typing import Any

import pytest
from families.zoo import ZOO
from torchrun import torchrun

import st3
from st3.families.meta import meta_model
from st3.inference.parallel import plan_of, tensor_parallel


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3", "qwen3_vl"])
def test_every_family_gets_a_plan_for_its_layers(name: str) -> None:
    """transformers has none for Qwen3-VL's: theirs is made by names."""
    if not ZOO[name].known:
        pytest.skip(f"this transformers has no {ZOO[name].config}")
    plan = plan_of(meta_model(ZOO[name].configuration()), 2)
    split = {key.rpartition(".")[2]: how for key, how in plan.items() if ".layers." in key}
    assert {split[f"{part}_proj"] for part in "qkv"} == {"colwise"}
    assert split["o_proj"] == "rowwise"
    assert split["gate_proj"] == split["up_proj"] == "colwise"
    assert split["down_proj"] == "rowwise"
    assert "lm_head" in plan


def test_layers_of_which_nobody_knows() -> None:
    with pytest.raises(ValueError, match=r"no tensor-parallel plan .* with a device map"):
        plan_of(meta_model(ZOO["lfm2_vl"].configuration()), 2)


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="start it by torchrun --nproc-per-node 2 -m st3_cli run"):
        st3.load("demo", tensor_parallel=True)
    for also in ({"device_map": "auto"}, {"quantization": "bnb-4bit"}, {"device": "cpu"}):
        with pytest.raises(ValueError, match="no quantization or device map yet: leave these out"):
            st3.load("demo", tensor_parallel=True, **also)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match=r"4 attention heads cannot be shared out to 3 processes"):
        tensor_parallel(ZOO["llava"].configuration())


@pytest.mark.slow
def test_the_command_over_two_processes(st3_: Any) -> None:
    """One of them talks, and each counts the bytes of its own heads."""
    code, out, err = torchrun(
        "-m", "st3_cli", "run", "--tensor-parallel", "--max-new-tokens", "12", "--json"
    )
    assert code == 0, err
    both, alone = json.loads(out), json.loads(st3_("run", "--max-new-tokens", 12, "--json").out)
    assert both["answer"] == alone["answer"]
    assert both["visual_tokens"] == alone["visual_tokens"]
    assert both["ranks"] == 2
    assert alone["ranks"] == 1
    assert 2 * both["kv_cache"]["bytes"] == alone["kv_cache"]["bytes"]
    assert 2 * both["kv_cache"]["untrimmed_bytes"] == alone["kv_cache"]["untrimmed_bytes"]


def test_a_failure_ends_all_processes() -> None:
    code, out, err = torchrun("-m", "st3_cli", "run", "nowhere.png", "What?", "--tensor-parallel")
    assert code
    assert not out
    told = [line for line in err.splitlines() if line.startswith(("st3: ", "st3 (rank 1): "))]
    assert told, "whichever is first: torchrun may end the other before it speaks"
    assert all(line.endswith("there is no file nowhere.png") for line in told)
