"""Pictures become as many tokens as a live model makes of them; towers cost what they cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from transformers import AutoConfig

import st3
from st3.families.meta import meta_model
from st3.inference.decoding import decode
from st3.inference.image_processors import image_processor_for
from st3.inference.presets import PRESETS, known_config
from st3.inference.random_weights import random_model
from st3.inference.shrink import shrink
from st3.methods import make_method
from st3.profiling.costs import costs_of
from st3.profiling.layers import layers_of
from st3.profiling.macs import MacCounter
from st3.profiling.picture import encode, picture_of, tower_of
from st3.profiling.runs import random_inputs
from st3.profiling.shape import Workload, shape_of

FAMILIES = [name for name in PRESETS if "-" in name]
PHOTO, LARGE = (1344, 896), (4928, 2773)
# By hand, from what the processors document. Qwen: a token is 28 or 32 pixels square, and what is
# beyond 16,384 of them is made smaller. InternVL: tiles of 448 and a small one of all, 256 each.
TOKENS = {
    ("7b", PHOTO): 24 * 24,
    ("qwen2.5-vl-7b", PHOTO): 48 * 32,
    ("qwen2.5-vl-7b", (2240, 1400)): 80 * 50,
    ("qwen2.5-vl-7b", LARGE): 170 * 96,
    ("qwen3-vl-8b", PHOTO): 42 * 28,
    ("qwen3-vl-8b", (5440, 3072)): 170 * 96,
    ("internvl3-8b", PHOTO): (3 * 2 + 1) * 256,
    # Four tiles of 24 x 24 that a 3:2 picture fills but for rows of padding, a mark at each row's
    # end, and the small one.
    ("llava-next-7b", PHOTO): 24 * 24 + (48 - 2 * 8) * (48 + 1),
    ("gemma3-12b", PHOTO): 256,
    ("gemma3-12b", LARGE): 256,
}


@pytest.mark.parametrize(("name", "size"), TOKENS)
def test_visual_tokens_by_hand(name: str, size: tuple[int, int]) -> None:
    assert picture_of(known_config(name), size).tokens == TOKENS[name, size]


def test_pictures_of_one_prompt_may_become_less() -> None:
    """LLaVA-OneVision: one of several is a square of 27 x 27 and a mark, with no tiles."""
    config = known_config("llava-onevision-7b")
    alone, among = picture_of(config), picture_of(config, together=3)
    assert among.tokens == 27 * 27 + 1
    assert alone.vision_macs == 13 * among.vision_macs  # twelve tiles and a small one
    for name in ("7b", "qwen2.5-vl-7b", "internvl3-8b"):
        assert picture_of(known_config(name), together=3) == picture_of(known_config(name))


def test_a_live_model_takes_several_in_a_prompt() -> None:
    config = shrink(known_config("llava-onevision-7b"))
    model = random_model(config, device="cpu")
    each = picture_of(config, PHOTO, 2).tokens
    assert each < picture_of(config, PHOTO).tokens
    work = Workload(2 * each, text=8, new=2, batch=2, picture=PHOTO, together=2)
    inputs = random_inputs(model, work)
    with torch.no_grad():
        assert bool(model(**inputs, logits_to_keep=1).logits.isfinite().all())


PARAMETERS = {
    "llava-next-7b": 7.06e9, "llava-onevision-7b": 8.03e9, "qwen2.5-vl-7b": 8.29e9,
    "qwen3-vl-8b": 8.77e9, "internvl3-8b": 7.94e9, "gemma3-12b": 12.19e9,
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_built_in_shapes_have_as_many_parameters_as_the_published_models(name: str) -> None:
    assert shape_of(meta_model(known_config(name))).parameters == pytest.approx(
        PARAMETERS[name], rel=2e-3
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_fvcore_equals_the_closed_form_of_each_family(name: str) -> None:
    """A layer: projections of queries, keys, values and output; attention; three of the MLP."""
    config = known_config(name)
    text, tokens = config.get_text_config(), 1500
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads, keys = text.num_attention_heads, text.num_key_value_heads
    weights = text.hidden_size * (2 * heads + 2 * keys) * size
    weights += 3 * text.hidden_size * text.intermediate_size
    expected = tokens * weights + 2 * tokens * tokens * heads * size
    layers = layers_of(meta_model(config))
    for layer in layers:
        seen = min(tokens, layer.window or tokens)
        less = 2 * tokens * (tokens - seen) * heads * size
        assert layer.prefill_macs(tokens) == expected - less
    assert [n for n, layer in enumerate(layers, 1) if layer.window] == [
        n
        for n, kind in enumerate(getattr(text, "layer_types", None) or (), 1)
        if kind == "sliding_attention"
    ]


@pytest.mark.parametrize("name", ["7b", "llava-next-7b", "gemma3-12b"])
def test_a_tower_costs_what_fvcore_counts(name: str) -> None:
    """Where fvcore can follow: towers that take squares. Convolutions it cannot do here."""
    config = known_config(name)
    tower = tower_of(meta_model(config))
    side = config.vision_config.image_size
    squares = encode(config, PHOTO, 1)["pixel_values"].flatten(0, -4).shape[0]
    patches = (side // config.vision_config.patch_size) ** 2
    width, layers = config.vision_config.hidden_size, tower.encoder.layers
    tokens = patches + (1 if "clip" in config.vision_config.model_type else 0)
    states = torch.empty(1, tokens, width, device="meta", dtype=torch.bfloat16)
    one = FlopCountAnalysis(layers[0].mlp, states).unsupported_ops_warnings(False).total()
    each = one + 4 * tokens * width**2 + 2 * tokens**2 * width
    patch = patches * width * 3 * config.vision_config.patch_size**2
    found = picture_of(config, PHOTO).vision_macs
    assert found == pytest.approx(squares * (len(layers) * each + patch), rel=1e-3)


@pytest.mark.parametrize("name", ["7b", *FAMILIES])
def test_a_live_model_takes_what_was_counted(name: str) -> None:
    """It raises where placeholders and features differ in number; two rows, two pictures each."""
    config, size = known_config(name), (400, 300)
    config = shrink(config)
    model = random_model(config, device="cpu")
    each = picture_of(config, size).tokens
    work = Workload(2 * each, text=8, new=2, batch=2, picture=size)
    inputs: dict[str, Any] = random_inputs(model, work)
    assert inputs["input_ids"].shape == (2, 2 * each + 8)
    with torch.no_grad():
        logits = model(**inputs, logits_to_keep=1).logits
    assert logits.shape[:2] == (2, 1)
    assert bool(logits.isfinite().all())


def test_marks_on_top_of_a_budget_are_predicted_to_the_byte() -> None:
    """LLaVA-NeXT: 32 rows of a photo's tiles end in a mark; published: 145 patches beside them."""
    picture = picture_of(known_config("llava-next-7b"), PHOTO)
    schedule = make_method("fastervlm:next-drop-95%").schedule(32)
    assert schedule.count(1, picture.tokens, like=picture.piece) == 145 + 32
    config = shrink(known_config("llava-next-7b"))
    model = random_model(config, device="cpu")
    picture = picture_of(config, PHOTO)
    work = Workload(2 * picture.tokens, text=8, new=3, batch=2, picture=PHOTO)
    inputs = random_inputs(model, work)
    for spec in ("fastervlm:keep=10%", "hired:keep=9", "vispruner:keep=9,per=prompt", "dpp:keep=9"):
        method = make_method(spec)
        with st3.trim(model, method) as session:
            decode(model, inputs, endless=True, max_new_tokens=3)
        schedule = method.schedule(config.get_text_config().num_hidden_layers)
        cost = costs_of(MacCounter(model), picture, schedule, work, 4)
        assert tuple(session.kv_bytes) == cost.kv_bytes, spec


def test_blocks_that_get_the_same_are_counted_as_if_each_had_run() -> None:
    """Windows and full attention apart: Qwen2.5's tower, whose depth is 32 with 4 that see all."""
    few, many = known_config("qwen2.5-vl-7b"), known_config("qwen2.5-vl-7b")
    few.vision_config.update({"depth": 2, "fullatt_block_indexes": [1]})
    many.vision_config.update({"depth": 6, "fullatt_block_indexes": [1, 4]})
    plain = known_config("qwen2.5-vl-7b")
    plain.vision_config.update({"depth": 1, "fullatt_block_indexes": []})
    size = (560, 448)
    costs = [picture_of(config, size).vision_macs for config in (plain, few, many)]
    window, tokens, width = costs[0], 40 * 32, 1280
    whole = costs[1] - window  # one block that sees all
    assert whole > 2 * tokens**2 * width
    rest = picture_of(_without_blocks(plain), size).vision_macs
    assert costs[2] == rest + 4 * (window - rest) + 2 * whole


def _without_blocks(config: Any) -> Any:
    config.vision_config.update({"depth": 0})
    return config


@pytest.mark.parametrize("text", ["{", "[]", '{"image_processor_type": "Nobody"}'])
def test_a_broken_file_of_settings_is_named(tmp_path: Path, text: str) -> None:
    config = known_config("qwen2.5-vl-7b")
    config.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert picture_of(config, PHOTO).tokens == 43 * 29  # the family's own: at most 1,280
    (tmp_path / "preprocessor_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"preprocessor_config.json makes no image processor: "):
        encode(config, PHOTO, 1)


def test_what_no_processor_takes() -> None:
    config = known_config("qwen2.5-vl-7b")
    with pytest.raises(ValueError, match="takes no picture of 9000 x 3 pixels"):
        picture_of(config, (9000, 3))
    with pytest.raises(ValueError, match="0 x 5 pixels has none"):
        picture_of(config, (0, 5))
    config.model_type = "unheard_of"
    with pytest.raises(ValueError, match="no image processor for the family 'unheard_of'"):
        image_processor_for(config)
