"""A tiny configuration keeps what trimming depends on, in every family."""

from __future__ import annotations

from typing import Any

import pytest
from families.zoo import ZOO
from transformers import Gemma4Config, Qwen3_5Config, SmolVLMConfig

from st3.families.meta import meta_model
from st3.families.parts import find_parts
from st3.inference.presets import PRESETS, known_config
from st3.inference.shrink import shrink
from st3.verification.subject import tiny_model

KNOWN = [name for name, tiny in ZOO.items() if tiny.known and name != "phi4_multimodal"]


def compared(config: Any) -> tuple[Any, Any]:
    """The text model's configuration before and after; both fit."""
    small = shrink(config)
    before, after = find_parts(meta_model(config)), find_parts(meta_model(small))
    assert after.visual_ids == before.visual_ids
    assert bool(after.lenders) == bool(before.lenders)
    assert bool(after.recurrent) == bool(before.recurrent)
    assert bool(after.windows) == bool(before.windows)
    return config.get_text_config(), small.get_text_config()


@pytest.mark.parametrize("name", PRESETS)
def test_shapes(name: str) -> None:
    before, after = compared(known_config(name))
    assert after.num_hidden_layers <= 12
    assert after.hidden_size <= 224
    assert after.vocab_size == before.vocab_size
    each = [c.num_attention_heads / c.num_key_value_heads for c in (before, after)]
    assert each[0] == each[1]
    assert {*(getattr(before, "layer_types", None) or ())} == {
        *(getattr(after, "layer_types", None) or ())
    }
    for text in (before, after):
        section = (text.rope_parameters or {}).get("mrope_section")
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        assert section is None or sum(section) == head // 2


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_tiny_stays(name: str) -> None:
    config = ZOO[name].configuration()
    before, after = compared(config)
    assert after.num_hidden_layers == before.num_hidden_layers
    assert config.to_dict() == ZOO[name].configuration().to_dict()


@pytest.mark.parametrize(("scale", "patches"), [(3, 9), (4, 8)])
def test_patches_can_be_merged_as_the_family_does(scale: int, patches: int) -> None:
    """SmolVLM's at 2 billion parameters by threes, smaller ones' by fours."""
    tower = {"image_size": 14 * 12 * scale, "patch_size": 14}
    small = shrink(SmolVLMConfig(scale_factor=scale, vision_config=tower))
    assert small.vision_config.image_size == 14 * patches


def test_layers_that_lend_their_keys() -> None:
    config = Gemma4Config(audio_config=None)
    config.get_text_config().num_kv_shared_layers = 12
    model, question, _ = tiny_model(config, device="cpu", dtype=ZOO["gemma4"].dtype, seed=0)
    parts = find_parts(model)
    assert parts.lenders
    assert len({*parts.lenders.values()}) == 2  # one that sees a window, one that sees all
    assert int(question.visual.sum()) >= 16


def test_states_and_attention() -> None:
    model, _, _ = tiny_model(Qwen3_5Config(), device="cpu", dtype=ZOO["llava"].dtype, seed=0)
    parts = find_parts(model)
    assert sorted(parts.recurrent) == [1, 2, 3, 5, 6, 7]
    assert len(parts.layers) == 8
