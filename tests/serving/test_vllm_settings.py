"""What a vLLM server may be asked for, and what it is told where that cannot be: without vLLM."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from st3.methods.before import selectors
from st3.serving.vllm.families import FAMILIES
from st3.serving.vllm.settings import EXAMPLE, fitting, make_settings, read_settings
from st3.serving.vllm.startup import Judge, misfit, too_old


def config(**given: Any) -> Any:
    """Of a LLaVA."""
    vision = SimpleNamespace(model_type="clip_vision_model")
    return SimpleNamespace(st3=given or None, vision_config=vision)


def test_the_example_is_one() -> None:
    settings = make_settings(json.loads(EXAMPLE)["st3"])
    assert settings.keep == 0.25
    assert settings.original
    assert settings.method.name == "divprune"
    assert settings == read_settings(config(keep=0.25, method="divprune"))
    asked = config(keep=0.25, method="divprune")
    assert read_settings(asked) is read_settings(asked)  # a request asks four times
    assert read_settings(config()) is None
    assert read_settings(SimpleNamespace()) is None


def test_settings_that_differ_are_told_apart_by_caches() -> None:
    made = [
        make_settings({"keep": keep, "method": method, "positions": positions}).mark
        for keep in (0.25, 0.5)
        for method in ("divprune", "mmr:trade=0.3", "mmr")
        for positions in ("original", "compact")
    ]
    assert len({*made}) == len(made)


def test_which_methods_fit() -> None:
    assert {*fitting()} == {
        "divprune", "downsample", "dpp", "fastervlm", "mmr", "norm", "pool", "random-before",
        "tome", "uniform-before",
    }  # fmt: skip
    assert {*selectors()} - {*fitting()} == {
        "aim", "cdpruner", "dycoke", "evs", "fastvid", "hiprune", "hired", "holitom", "prumerge",
        "prumerge_plus", "scope", "vidcom2", "vispruner", "visionzip", "vscan",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"keep": 0, "method": "dpp"}, "above 0 and up to 1, such as 0.25; got 0"),
        ({"keep": 1.5, "method": "dpp"}, "got 1.5"),
        ({"keep": -0.2, "method": "dpp"}, "got -0.2"),
        ({"keep": float("nan"), "method": "dpp"}, "got NaN"),
        ({"keep": "a lot", "method": "dpp"}, 'got "a lot"'),
        ({"keep": True, "method": "dpp"}, "got true"),
        ({"keep": 64, "method": "dpp"}, "got 64"),
        ({"method": "dpp"}, "keep must be set, as in"),
        ({"keep": 0.5}, "method must be set, as in"),
        ({"keep": 0.5, "method": "dpp", "kep": 1}, "unknown setting 'kep'; known: keep, method"),
        ({"keep": 0.5, "method": "magic"}, "'magic' does not choose before the decoder; known"),
        ({"keep": 0.5, "method": 7}, "method is a name, got 7"),
        ({"keep": 0.5, "method": "st3"}, "'st3' does not choose before the decoder"),
        ({"keep": 0.5, "method": "cdpruner"}, "'cdpruner' needs the question"),
        ({"keep": 0.5, "method": "evs"}, "'evs' needs frames of a video: vLLM has --video-pruning"),
        ({"keep": 0.5, "method": "vispruner"}, "more of the vision tower than its class token"),
        ({"keep": 0.5, "method": "dpp:per=prompt"}, "each picture by itself"),
        ({"keep": 0.5, "method": "dpp:tau=9"}, "leave tau out"),
        ({"keep": 0.5, "method": "dpp:kv_cache_dtype=int8"}, "give --kv-cache-dtype instead"),
        ({"keep": 0.5, "method": "dpp:keep=3"}, "keep is given twice"),
        ({"keep": 0.5, "method": "mmr:trade=9"}, "trade must lie between 0 and 1"),
        ({"keep": 0.5, "method": "dpp", "positions": "new"}, 'original, compact, got "new"'),
        ("much", "settings are a mapping such as"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(given: Any, said: str) -> None:
    with pytest.raises(ValueError, match=r"^st3: ") as refused:
        make_settings(given)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def _judged(architecture: str, given: Any, **more: Any) -> Any:
    """The configuration after vLLM has asked about it."""
    pruning = SimpleNamespace(is_multimodal_pruning_enabled=lambda: more.get("evs", False))
    hf = config(**given)
    if "tower" in more:
        hf.vision_config.model_type = more["tower"]
    model = SimpleNamespace(
        hf_config=hf, multimodal_config=None if more.get("blind") else pruning
    )  # fmt: skip
    judge = Judge(architecture, None)
    judge.verify_and_update_model_config(model)
    judge.verify_and_update_config(
        SimpleNamespace(
            model_config=model,
            compilation_config=SimpleNamespace(cudagraph_mm_encoder=more.get("graphs", False)),
            parallel_config=SimpleNamespace(pipeline_parallel_size=more.get("stages", 1)),
        )
    )
    return hf


LLAVA, QWEN = "LlavaForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"
GIVEN = {"keep": 0.25, "method": "divprune"}


@pytest.mark.parametrize(
    ("architecture", "given", "more", "said"),
    [
        (LLAVA, {"keep": 2, "method": "dpp"}, {}, "st3: keep is a share"),
        ("LlamaForCausalLM", GIVEN, {"blind": True}, "LlamaForCausalLM takes no pictures"),
        (LLAVA, GIVEN, {"evs": True}, "leave --video-pruning-rate out"),
        (LLAVA, GIVEN, {"graphs": True}, "leave cudagraph_mm_encoder off"),
        (LLAVA, GIVEN, {"stages": 2}, "one stage, and --pipeline-parallel-size is 2: take 1, or "
                                      "positions=compact"),
        (QWEN, GIVEN, {"stages": 2}, "take 1, with --tensor-parallel-size for more devices"),
        (QWEN, GIVEN | {"positions": "compact"}, {}, "they lie on a grid: take positions=original"),
        (QWEN, GIVEN | {"method": "fastervlm"}, {}, "needs a vision tower with a class token"),
        (LLAVA, GIVEN | {"method": "mmr"}, {"tower": "siglip_vision_model"}, "take divprune"),
    ],
)  # fmt: skip
def test_what_cannot_be_ends_the_start_with_a_line(
    architecture: str, given: Any, more: Any, said: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        _judged(architecture, given, **more)
    line = str(ended.value.code)
    assert line.startswith("st3: ")
    assert said in line
    assert "\n" not in line


def test_positions_of_one_axis_are_asked_for_where_they_are_kept() -> None:
    """vLLM then asks the model for them, whatever rotary embedding its decoder has."""
    assert _judged(LLAVA, GIVEN).mrope_section == [1, 1, 1]
    assert not hasattr(_judged(LLAVA, GIVEN | {"positions": "compact"}), "mrope_section")
    assert not hasattr(_judged(LLAVA, {}), "mrope_section")
    assert not hasattr(_judged(QWEN, GIVEN), "mrope_section")
    assert not hasattr(_judged(LLAVA, GIVEN | {"positions": "compact"}, stages=2), "mrope_section")


def test_what_vllm_asks_for_is_still_asked() -> None:
    called = []
    before = SimpleNamespace(
        verify_and_update_model_config=lambda given: called.append("model"),
        verify_and_update_config=lambda given: called.append("all"),
    )
    judge = Judge(LLAVA, before)
    model = SimpleNamespace(hf_config=config())
    judge.verify_and_update_model_config(model)
    judge.verify_and_update_config(SimpleNamespace(model_config=model))
    assert called == ["model", "all"]


@pytest.mark.parametrize(
    ("version", "old"),
    [("0.30.0", False), ("0.32.0+cpu", False), ("1.0", False), ("0.29.1", True), ("0.9.2", True),
     ("0.26.0", True), ("dev", False), ("0.0.0", False)],
)  # fmt: skip
def test_versions(version: str, old: bool) -> None:
    said = too_old(version)
    assert (said is not None) is old
    assert said is None or f"vLLM {version} is too old" in said


def test_every_family_of_the_table_is_judged() -> None:
    settings = make_settings(GIVEN)
    assert all(misfit(settings, family, config()) is None for family in FAMILIES.values())
