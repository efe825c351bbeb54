"""Profiles: counts against closed forms, bytes against live tensors, times against each other."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
import torch
from conftest import tiny_config, tiny_llava

import st3
from st3.families.meta import meta_model
from st3.inference.presets import known_config
from st3.methods import METHODS, make_method, parse_methods
from st3.methods.schedule import Schedule
from st3.profiling import Workload, profile
from st3.profiling.ceilings import Ceilings, ideal_prefill, ideal_step, measure_ceilings
from st3.profiling.costs import costs_of, kv_bytes
from st3.profiling.course import course_of
from st3.profiling.latency import measure
from st3.profiling.layers import layers_of
from st3.profiling.macs import MacCounter
from st3.profiling.operators import kind_of, operators
from st3.profiling.picture import picture_of
from st3.profiling.runs import beside_stock, random_inputs
from st3.profiling.shape import shape_of


def gqa_config() -> Any:
    """Mistral-like: four query heads to a key head, a head size of its own."""
    config = known_config("7b")
    text = config.text_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = 768, 2048, 20
    text.num_attention_heads, text.num_key_value_heads, text.head_dim = 12, 3, 80
    return config


CONFIGS = {
    "7b": lambda: known_config("7b"),
    "13b": lambda: known_config("13b"),
    "demo": lambda: known_config("demo"),
    "small": lambda: known_config("small"),
    "gqa": gqa_config,
}


def prefill_layer(text: Any, n: int) -> int:
    """4nd^2 + 2n^2d + 3ndm, with fewer key heads and other head sizes where there are."""
    d, m = text.hidden_size, text.intermediate_size
    size = getattr(text, "head_dim", None) or d // text.num_attention_heads
    query, key = text.num_attention_heads * size, text.num_key_value_heads * size
    return n * d * (2 * query + 2 * key) + 2 * n * n * query + 3 * n * d * m


def decode_layer(text: Any, keys: int) -> int:
    """The same for one token: attention is over `keys` keys."""
    d = text.hidden_size
    size = getattr(text, "head_dim", None) or d // text.num_attention_heads
    query = text.num_attention_heads * size
    return prefill_layer(text, 1) - 2 * query + 2 * keys * query


@pytest.mark.parametrize("shape", CONFIGS)
def test_fvcore_equals_the_closed_form(shape: str) -> None:
    config = CONFIGS[shape]()
    text = config.get_text_config()
    model = meta_model(config)
    counter, sizes = MacCounter(model), shape_of(model)
    picture = picture_of(config)
    work = Workload(visual=picture.tokens, text=36, new=40, batch=3)
    for name in METHODS:
        schedule = make_method(name).schedule(sizes.layers)
        cost = costs_of(counter, picture, schedule, work, 2)
        alive = [[schedule.count(n + 1, work.visual, t) + 36 + t for n in range(sizes.layers)]
                 for t in range(40)]  # fmt: skip
        prefill = sum(prefill_layer(text, n) for n in alive[0])
        decode = sum(decode_layer(text, n) for step in alive[1:] for n in step)
        assert cost.prefill_macs == pytest.approx(3 * prefill, rel=1e-3)
        assert cost.decode_macs == pytest.approx(3 * decode, rel=1e-3)
        assert cost.head_macs == 3 * 40 * text.hidden_size * text.vocab_size


def test_a_step_layer_by_layer() -> None:
    counter = MacCounter(meta_model(tiny_config(layers=4)))
    text = tiny_config(layers=4).text_config
    assert counter.step_layers((9, 30, 17, 9)) == [decode_layer(text, n) for n in (9, 30, 17, 9)]


def predicted_bytes(config: Any, schedule: Any, work: Workload) -> tuple[int, ...]:
    """In float32."""
    layers = layers_of(meta_model(config))
    pictures = work.visual // 64
    return kv_bytes(layers, course_of(layers, schedule, work, pictures), work.batch, 4)


def test_vision_tower_and_projector_of_llava() -> None:
    picture = picture_of(known_config("7b"))
    n, d, m = 577, 1024, 4096  # patches and the class token
    layers = 24 * (4 * n * d * d + 2 * n * n * d + 2 * n * d * m)
    assert picture.vision_macs == 576 * 3 * 14 * 14 * d + layers
    assert picture.projector_macs == 576 * (d * 4096 + 4096 * 4096)


@pytest.mark.parametrize(
    ("config", "counts"),
    [("7b", (6476267520, 7063427072)), ("demo", (6037504, None)), ("small", (158638080, None))],
)
def test_shapes(config: str, counts: tuple[int, int | None]) -> None:
    shape = shape_of(meta_model(known_config(config)))
    assert shape.decoder_parameters == counts[0]
    assert shape.parameters == (counts[1] or shape.parameters)
    assert picture_of(known_config(config)).tokens == 576
    if config == "7b":
        embeddings = 2 * 32064 * 4096 + 4096  # and the last norm
        assert shape.vision_parameters + embeddings + shape.decoder_parameters == shape.parameters


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_predicted_bytes_are_those_of_the_live_tensors(name: str, kv_heads: int) -> None:
    model = tiny_llava(kv_heads=kv_heads)
    work = Workload(visual=128, text=9, new=7, batch=2)
    inputs = random_inputs(model, work)
    method = make_method(name)
    schedule = method.schedule(10)
    live = []

    def look(*_: Any) -> None:
        if session.cache is not None and session.cache.layers[-1].is_initialized:
            live.append(session.cache.live_bytes)

    handle = model.lm_head.register_forward_hook(look)
    with st3.trim(model, method) as session:
        model.generate(**inputs, max_new_tokens=7, min_new_tokens=7, do_sample=False)
    handle.remove()
    if schedule.entering.adaptive:  # known from then on; the wider row's, for both
        schedule = schedule.with_entered(max(session.record.turns[0].entering))
    assert tuple(live) == predicted_bytes(model.config, schedule, work)


def test_untrimmed_bytes_are_those_of_stock_transformers() -> None:
    model, work = tiny_llava(), Workload(visual=64, text=9, new=7, batch=2)
    result = model.generate(
        **random_inputs(model, work), max_new_tokens=7, min_new_tokens=7, do_sample=False,
        return_dict_in_generate=True,
    )  # fmt: skip
    held = sum(
        x.nbytes for layer in result.past_key_values.layers for x in (layer.keys, layer.values)
    )
    assert predicted_bytes(model.config, Schedule((1.0,) * 10), work)[-1] == held


def test_inputs_are_what_was_asked_for() -> None:
    model = tiny_llava()
    inputs = random_inputs(model, Workload(visual=128, text=9, new=4, batch=3))
    visual = inputs["input_ids"] == model.config.image_token_id
    assert visual.sum(1).tolist() == [128] * 3
    assert inputs["input_ids"].shape == (3, 137)
    assert inputs["pixel_values"].shape == (6, 3, 32, 32)
    assert not visual[:, -1].any()
    for text in (1, 2, 9):
        work = Workload(visual=128, text=text, new=4)
        last = (random_inputs(model, work)["input_ids"][0] == model.config.image_token_id).nonzero()
        assert int(last[-1]) == 128 + text - work.trailing(pictures=2) - 1
    assert len({tuple(row.tolist()) for row in inputs["input_ids"]}) == 3
    with pytest.raises(ValueError, match=r"100 visual tokens.*pictures of 64.*: 128"):
        random_inputs(model, Workload(visual=100))
    with pytest.raises(ValueError, match="do not fit a context of 2048"):
        random_inputs(model, Workload(visual=64 * 32))


def test_runs_are_interleaved_and_add_up() -> None:
    model, work = tiny_llava(), Workload(visual=64, text=8, new=6, batch=2)
    model.generation_config.eos_token_id = list(range(1, 99))  # would end any answer
    order: list[tuple[str, int]] = []
    found, interrupted = measure(
        model, work, beside_stock(parse_methods("none,st3")), repeats=3, min_seconds=0,
        on_run=lambda name, done: order.append((name, done)),
    )  # fmt: skip
    assert model.generation_config.eos_token_id == list(range(1, 99))
    assert not interrupted
    everyone = ["stock", "none", "st3"]
    assert order == [(name, done) for done in (0, 0, 1, 2) for name in everyone]
    assert list(found) == everyone
    for name, measured in found.items():
        assert len(measured.runs) == 3
        for run in measured.runs:
            assert len(run.steps) == 5
            assert run.ttft + sum(run.steps) == pytest.approx(run.total)
            assert 0 < run.vision + run.prefill < run.ttft
            assert (run.kv_bytes is None) == (name == "stock")
    assert model.config.text_config._attn_implementation == "sdpa"
    assert not model.model.language_model._forward_pre_hooks


def test_launches_are_counted() -> None:
    """Trimming launches more at prefill, and nothing more than its bookkeeping in a step."""
    model, work = tiny_llava(), Workload(visual=64, text=8, new=4)
    found, _ = measure(
        model, work, beside_stock(parse_methods("none,pvtp,st3")), repeats=1, min_seconds=0
    )
    launched = {name: measured.launched for name, measured in found.items()}
    assert launched["stock"].prefill < launched["none"].prefill < launched["pvtp"].prefill
    assert launched["none"].steps[-1] == launched["st3"].steps[-1]
    assert abs(launched["st3"].steps[-1] - launched["stock"].steps[-1]) <= 5
    again, _ = measure(model, work, beside_stock({}), repeats=1, min_seconds=0)
    assert again["stock"].launched == launched["stock"]


def test_a_minimum_time_makes_more_rounds() -> None:
    model, work = tiny_llava(layers=4), Workload(visual=64, text=8, new=2)
    found, _ = measure(model, work, beside_stock({}), repeats=1, min_seconds=0.3)
    runs = found["stock"].runs
    assert len(runs) > 2
    assert sum(run.total for run in runs) > 200


def test_ctrl_c_keeps_whole_rounds() -> None:
    model, work = tiny_llava(layers=4), Workload(visual=64, text=8, new=2)
    calls = []

    def stop(name: str, done: int) -> None:
        calls.append(name)
        if done == 2 and name == "none":
            raise KeyboardInterrupt

    report = profile(
        "tiny", model.config, {"none": make_method("none")}, [work],
        dtype=torch.float32, live=model, weights="random", repeats=9, on_run=stop,
    )  # fmt: skip
    assert report.interrupted
    assert "Interrupted" in report.notes[-1]
    assert [len(sample["e2e_ms"]) for sample in report.samples] == [2, 2]
    assert all(row.ttft_ms for row in report.rows)

    def stop_at_once(name: str, done: int) -> None:
        raise KeyboardInterrupt

    report = profile(
        "tiny", model.config, {}, [work, Workload(visual=64, batch=2)],
        dtype=torch.float32, live=model, weights="random", on_run=stop_at_once,
        notes=["Latency of something."],
    )  # fmt: skip
    assert report.interrupted
    assert len(report.notes) == 1
    assert report.weights is None
    assert [row.ttft_ms for row in report.rows] == [None, None]
    assert all(row.prefill_macs for row in report.rows)


def test_the_roofline() -> None:
    """Layer by layer the slower of both, by hand."""
    config = tiny_config(layers=6)
    model = meta_model(config)
    counter, shape = MacCounter(model), shape_of(model)
    text = config.text_config
    ceilings = Ceilings(macs_per_second=2e9, bytes_per_second=1e9, launch_seconds=1e-6)
    work = Workload(visual=64, text=8, new=3, batch=2)
    schedule = make_method("fastv:k=2,r=0.75").schedule(6)
    weights = 4 * shape.decoder_parameters / 6
    token = 4 * 2 * 2 * 16  # bytes of keys and values, two heads of 16
    course = course_of(counter.layers, schedule, work)
    found = ideal_prefill(ceilings, counter, course, work, 4)
    # Of attention, 2 n^2 d, the causal half: d is four heads of 16.
    arithmetic = [2 * (prefill_layer(text, n) - n * n * 64) / 2e9 for n in (72, 72, 24, 24, 24, 24)]
    moved = [(weights + 2 * n * token) / 1e9 for n in (72, 72, 24, 24, 24, 24)]
    pairs = list(zip(arithmetic, moved, strict=True))
    assert found.time == pytest.approx(1000 * sum(max(pair) for pair in pairs))
    assert found.arithmetic == pytest.approx(1000 * sum(arithmetic))
    assert found.bandwidth == pytest.approx(1000 * sum(moved))
    step = ideal_step(ceilings, counter, shape, course, work, 4)
    assert step is not None
    total = 0.0
    for t in (1, 2):
        for n in (72, 72, 24, 24, 24, 24):
            sums = 2 * decode_layer(text, n + t) / 2e9
            total += max(sums, (weights + 2 * (n + t) * token) / 1e9)
    head = max(2 * 64 * 100 / 2e9, 4 * 64 * 100 / 1e9)
    assert step.time == pytest.approx(1000 * (total / 2 + head))
    one = Workload(visual=64, new=1)
    assert (
        ideal_step(ceilings, counter, shape, course_of(counter.layers, schedule, one), one, 4)
        is None
    )


def test_ceilings_are_plausible() -> None:
    found = measure_ceilings(torch.device("cpu"), torch.float32)
    assert 1e8 < found.macs_per_second < 1e13
    assert 1e8 < found.bytes_per_second < 1e13
    assert 1e-8 < found.launch_seconds < 1e-2


def test_rows_of_a_measured_profile() -> None:
    model = tiny_llava()
    works = [Workload(visual=64, text=8, new=5, batch=batch) for batch in (1, 3)]
    report = profile(
        "tiny", model.config, parse_methods("none,st3,fastv"), works,
        dtype=torch.float32, live=model, weights="random", repeats=3,
    )  # fmt: skip
    rows = report.rows
    assert [(row.method, row.batch_size) for row in rows] == [
        (name, batch) for batch in (1, 3) for name in ("stock", "none", "st3", "fastv")
    ]
    for row, sample in zip(rows, report.samples, strict=True):
        stock, none = (next(r for r in rows if (r.method, r.batch_size) == (name, row.batch_size))
                       for name in ("stock", "none"))  # fmt: skip
        assert row.e2e_ms == sorted(sample["e2e_ms"])[1]
        assert row.ttft_ms == sorted(sample["ttft_ms"])[1]
        assert row.speedup == pytest.approx(stock.e2e_ms / row.e2e_ms)
        assert row.speedup_over_none == pytest.approx(none.e2e_ms / row.e2e_ms)
        assert row.tokens_per_second == pytest.approx(1000 * row.batch_size * 5 / row.e2e_ms)
        assert row.prefill_flops == 2 * row.prefill_macs
        assert row.achieved_saving == pytest.approx(1 - row.prefill_ms / stock.prefill_ms)
        assert row.ideal_saving == pytest.approx(
            1 - row.prefill_ideal_ms / stock.prefill_ideal_ms, abs=1e-12
        )
        assert 0 < row.tpot_ms <= row.tpot_p90_ms <= max(sample["e2e_ms"])
        assert row.peak_memory_bytes is None or torch.cuda.is_available()
    assert rows[4].prefill_macs == 3 * rows[0].prefill_macs
    assert math.isclose(rows[2].saving_share, rows[2].achieved_saving / rows[2].ideal_saving)
    titles = [table.title for table in report.tables(detail=True)]
    assert len(titles) == 12
    assert all("random weights" in title for title in titles)


def test_the_cache_is_checked_against_the_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    from st3.engine import record

    monkeypatch.setattr(record.Record, "record_bytes", lambda self, new=0: None)
    with pytest.raises(RuntimeError, match="held other bytes than its schedule says"):
        profile(
            "tiny", tiny_config(), {"none": make_method("none")}, [Workload(visual=64, new=2)],
            dtype=torch.float32, live=tiny_llava(), weights="random", repeats=1,
        )  # fmt: skip


def test_ctrl_c_while_the_ceilings_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch before is kept, and what was counted."""
    calls = []

    def stop(device: torch.device, dtype: torch.dtype) -> Ceilings:
        calls.append(device)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return Ceilings(1e9, 1e9, 1e-6)

    monkeypatch.setattr(sys.modules["st3.profiling.profile"], "measure_ceilings", stop)
    model = tiny_llava(layers=4)
    works = [Workload(visual=64, text=8, new=2, batch=batch) for batch in (1, 2)]
    report = profile(
        "tiny", model.config, {}, works, dtype=torch.float32, live=model, weights="random",
        repeats=1,
    )  # fmt: skip
    assert report.interrupted
    assert [row.ttft_ms is None for row in report.rows] == [False, True]
    assert report.weights == "random"


@pytest.mark.parametrize(
    "asked",
    [
        {"num_beams": 4}, {"max_time": 1e-4}, {"use_cache": False}, {"repetition_penalty": 1.5},
        {"num_return_sequences": 2, "do_sample": True}, {"cache_implementation": "static"},
    ],
)  # fmt: skip
def test_a_checkpoints_generation_settings_stay_out(asked: dict[str, Any]) -> None:
    model, work = tiny_llava(layers=4), Workload(visual=64, text=8, new=5, batch=2)
    model.generation_config.update(**asked)
    before, variants = model.generation_config, beside_stock(parse_methods("st3"))
    found, _ = measure(model, work, variants, repeats=1, min_seconds=0)
    assert model.generation_config is before
    plain, _ = measure(tiny_llava(layers=4), work, variants, repeats=1, min_seconds=0)
    for name, measured in found.items():
        assert measured.launched == plain[name].launched
        assert len(measured.runs[0].steps) == 4


def test_counting_leaves_the_configuration_alone() -> None:
    config = tiny_config()
    config.dtype = torch.float16
    before = config.to_dict()
    shape_of(meta_model(config))
    assert config.to_dict() == before
    assert config.dtype == torch.float16


@pytest.mark.parametrize(
    ("tower", "strategy", "tokens"),
    [("clip", "default", 64), ("clip", "full", 65), ("siglip", "full", 64)],
)
def test_visual_tokens_are_those_that_the_tower_makes(
    tower: str, strategy: str, tokens: int
) -> None:
    from transformers import SiglipVisionConfig

    config = tiny_config()
    config.vision_feature_select_strategy = strategy
    if tower == "siglip":
        config.vision_config = SiglipVisionConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
            image_size=32, patch_size=4,
        )  # fmt: skip
    picture = picture_of(config)
    assert picture.tokens == tokens
    # Patches, then each layer's projections, attention and MLP; SigLIP has a pooling head besides.
    n = 65 if tower == "clip" else 64
    layers = 2 * (4 * n * 32 * 32 + 2 * n * n * 32 + 2 * n * 32 * 64)
    counted = picture.vision_macs - 64 * 3 * 4 * 4 * 32 - layers
    assert counted == 0 if tower == "clip" else counted >= 0


def test_rotary_embeddings_of_any_kind_count() -> None:
    config = tiny_config()
    config.text_config.rope_parameters = {
        "rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4,
    }  # fmt: skip
    layer = layers_of(meta_model(config))[0]
    assert layer.prefill_macs(9) == prefill_layer(config.text_config, 9)


def test_operators_add_up_and_are_the_models_own() -> None:
    """Seven linear layers in each of ten decoder layers; stock concatenates, st3 sorts."""
    model = tiny_llava(kv_heads=4)
    work = Workload(visual=64, text=9, new=8, batch=2)
    entries = operators(model, work, beside_stock({"st3": make_method("st3")}))
    assert [(e["method"], e["phase"]) for e in entries] == [
        (m, phase) for m in ("stock", "st3") for phase in ("prefill", "decode step")
    ]
    for entry in entries:
        assert sum(entry["kinds"].values()) == pytest.approx(entry["wall_ms"], rel=0.05)
        calls = {item["operator"]: item["calls"] for item in entry["top"]}
        assert calls["mm"] == 70
        assert calls.get("cat", 0) >= 20 or entry["method"] == "st3"
        assert (entry["kinds"]["sorting"] > 0) == (
            entry["method"] == "st3" and entry["phase"] == "prefill"
        )


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("mm", "matmul"), ("addmm", "matmul"), ("mul", "other"), ("mean", "other"),
        ("_scaled_dot_product_flash_attention_for_cpu", "attention"), ("copy_", "copies"),
        ("_cudnn_attention_forward", "attention"), ("index_select", "copies"),
        ("sort", "sorting"), ("topk", "sorting"), ("rsqrt", "other"),
    ],
)  # fmt: skip
def test_kinds_of_operators(name: str, kind: str) -> None:
    assert kind_of(name) == kind
