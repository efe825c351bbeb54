"""Decoders whose layers lie on several devices, or nowhere until they are called.

Where there is one device, a second is played (`placed`): everything that meets must lie together.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from accelerate.utils import send_to_device
from conftest import greedy as any_greedy
from families.talk import Talk
from families.zoo import ZOO
from placed import DEVICES, Placing

import st3
from st3.families.parts import find_parts

METHODS: dict[str, dict[str, Any]] = {
    "pvtp": {"prune_ratio": 0.5, "stride": 1, "ratio": 0.15},
    "st3": {"prune_ratio": 0.5, "stride": 1, "ratio": 0.15, "tau": 9},
}
FAMILIES = ["llava", "qwen2_5_vl", "qwen3_vl", "gemma3", "qwen3_5", "llama4", "gemma4"]
REAL = pytest.param(
    ("cuda:0", "cuda:1"),
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
    ],
)


def greedy(model: Any, inputs: Any) -> Any:
    """Answers without placeholders, which some models would look for pictures for."""
    return any_greedy(model, inputs, suppress_tokens=list(range(93, 100)))


def _map(model: Any, cut: int, first: str, second: str) -> dict[str, str]:
    """Layers from `cut` (from 1) on, and what comes behind them, on the second device."""
    decoder, found = find_parts(model).decoder, {}
    late = {*decoder.layers[cut - 1 :]}
    late |= {
        child for name, child in decoder.named_children() if name in ("norm", "final_layernorm")
    }
    head = model.get_output_embeddings()
    if head.weight is not model.get_input_embeddings().weight:
        late.add(head)

    def put(name: str, module: Any) -> None:
        if module in late or late.isdisjoint(module.modules()):
            found[name] = second if module in late else first
            return
        for child, inside in module.named_children():
            put(f"{name}.{child}".removeprefix("."), inside)

    put("", model)
    return found


@contextmanager
def _spread(model: Any, cut: int, devices: tuple[str, str]) -> Iterator[Any]:
    """The model over two devices, by accelerate."""
    with Placing() if devices == DEVICES else nullcontext():
        skip = model._skip_keys_device_placement
        yield dispatch_model(model, _map(model, cut, *devices), devices[0], skip_keys=skip)


@pytest.mark.parametrize("devices", [DEVICES, REAL])
@pytest.mark.parametrize(
    ("method", "cut"), [pytest.param("pvtp", 2, marks=pytest.mark.slow), ("st3", 2), ("st3", 4)]
)
@pytest.mark.parametrize("name", FAMILIES)
def test_two_devices_are_one(name: str, method: str, cut: int, devices: tuple[str, str]) -> None:
    """The second begins before scores decide, or where a group of layers begins."""
    if not ZOO[name].known:
        pytest.skip(f"this transformers has no {ZOO[name].config}")
    model = ZOO[name].build()
    inputs = ZOO[name].inputs(model, ZOO[name].padded)
    model.set_experts_implementation("eager")  # others ask for kernels of their device
    with st3.trim(model, method, **METHODS[method]) as session:
        want = greedy(model, inputs)
        kept, held = [session.kept(n, 1) for n in range(1, 7)], session.kv_bytes
    with _spread(model, cut, devices), st3.trim(model, method, **METHODS[method]) as session:
        got = greedy(model, send_to_device(inputs, devices[0]))
        assert session.cache is not None
        for number in find_parts(model).keyed:
            layer = session.cache.layers[number - 1]
            assert str(layer.keys.device) == devices[number >= cut]
        assert [session.kept(n, 1) for n in range(1, 7)] == kept
        assert session.kv_bytes == held
        assert torch.equal(got.sequences.cpu(), want.sequences)
        logits = torch.stack(got.logits).cpu()
    torch.testing.assert_close(logits, torch.stack(want.logits), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("scorer", ["prompt-3-layers", "key-norm", "frames-in-turn", "random"])
def test_scores_go_along(scorer: str) -> None:
    """Those of layers on one device, which are added to those of the next."""
    model = ZOO["qwen2_5_vl"].build()
    inputs = ZOO["qwen2_5_vl"].inputs(model, ZOO["qwen2_5_vl"].padded)
    how = METHODS["st3"] | {"scorer": scorer}
    with st3.trim(model, "st3", **how) as session:
        want, kept = greedy(model, inputs), [session.kept(n) for n in range(1, 7)]
    with _spread(model, 3, DEVICES), st3.trim(model, "st3", **how) as session:
        got = greedy(model, send_to_device(inputs, DEVICES[0]))
        assert [session.kept(n) for n in range(1, 7)] == kept
        assert torch.equal(got.sequences.cpu(), want.sequences)


@pytest.mark.parametrize("name", ["llava", "gemma3"])
def test_a_conversation_over_two_devices(name: str) -> None:
    """Pictures in the second turn as well, rows with padding, the cache in 8 bits."""
    model, tiny = replace(ZOO[name], dtype=torch.float64).build(), ZOO[name]
    turns = (("ttIIttttt", "tItt"), ("tItt", "tIItttt"), ("ttt", "tttt"))

    def held(make: Any) -> tuple[list[torch.Tensor], Any]:
        with st3.trim(model, "st3", kv_cache_dtype="int8", **METHODS["st3"]) as session:
            talk = Talk(model, make)
            for rows in turns:
                talk.say(rows)
            return [said.cpu() for said in talk.said], [session.kept(n, 1) for n in range(1, 7)]

    def inputs(model: Any, rows: Any) -> Any:
        made = replace(tiny, dtype=torch.float64).inputs(model, rows)
        return send_to_device(made, DEVICES[0]) if model.device.type != "cpu" else made

    want, kept = held(inputs)
    with _spread(model, 3, DEVICES):
        got, left = held(inputs)
    assert left == kept
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:You are calling .generate:UserWarning")
@pytest.mark.parametrize("how", ["hooks", "cpu", "disk"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "gemma4"])
def test_offloaded_is_as_it_was(name: str, method: str, how: str, tmp_path: Path) -> None:
    """By accelerate: its hooks alone, or weights that come from memory or disk for each call.

    Gemma 4 looks up its padding's embedding where no hook brings it, trimmed or not.
    """
    if not ZOO[name].known:
        pytest.skip(f"this transformers has no {ZOO[name].config}")
    model = ZOO[name].build()
    inputs = ZOO[name].inputs(model, ZOO[name].padded)
    with st3.trim(model, method, **METHODS[method]) as session:
        want, kept = greedy(model, inputs), [session.kept(n, 1) for n in range(1, 7)]
    if how == "hooks":
        dispatch_model(model, {"": "cpu"}, main_device="cpu", force_hooks=True)
    elif how == "cpu":
        cpu_offload(model, torch.device("cpu"))
    else:
        disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))
    layer = find_parts(model).layers[-1]
    assert {p.device.type for p in layer.parameters()} == {"cpu" if how == "hooks" else "meta"}
    with st3.trim(model, method, **METHODS[method]) as session:
        got = greedy(model, inputs)
        assert [session.kept(n, 1) for n in range(1, 7)] == kept
    assert torch.equal(got.sequences, want.sequences)
    torch.testing.assert_close(
        torch.stack(got.logits), torch.stack(want.logits), atol=1e-5, rtol=1e-5
    )


def test_a_layer_in_two_places_is_refused() -> None:
    model = ZOO["llava"].build()
    with Placing():
        inside = model.model.language_model.layers[2].mlp.up_proj
        inside.weight = torch.nn.Parameter(inside.weight.data.to(DEVICES[1]), requires_grad=False)
        with pytest.raises(ValueError, match="layer 3 of the decoder is split over cpu and mtia:1"):
            st3.trim(model, "st3").__enter__()


@pytest.mark.filterwarnings("ignore:You are calling .generate:UserWarning")
def test_recordings_rest_where_layers_lie_apart() -> None:
    model = ZOO["llava"].build()
    cpu_offload(model, torch.device("cpu"))
    with (
        pytest.warns(UserWarning, match="lie on several devices, or are offloaded"),
        st3.trim(model, "st3", compile="inductor", **METHODS["st3"]),
    ):
        greedy(model, ZOO["llava"].inputs(model, ZOO["llava"].one))
