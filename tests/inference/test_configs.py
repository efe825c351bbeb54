"""Is it for my model? Judged from config.json alone, before weights, and the same everywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import CONFIG_MAPPING

import st3
from st3.families.names import name_family
from st3.families.proven import PROVEN
from st3.inference import configs, loading
from st3.inference.checkpoints import Source
from st3.inference.configs import find_config, load_config

MM = {"mm_vision_tower": "openai/clip-vit-large-patch14-336", "mm_projector_type": "mlp2x_gelu"}
FLAT = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 111}


def checkpoint(folder: Path, config: Any, *files: str) -> str:
    (folder / "config.json").write_text(json.dumps(config))
    for name in files:
        (folder / name).write_bytes(b"not to be read")
    return str(folder)


@pytest.fixture(autouse=True)
def nothing_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither weights nor a processor may be touched in these tests."""
    for name in ("load_processor", "check_weights"):
        monkeypatch.setattr(
            loading, name, lambda *_: pytest.fail("looked at more than config.json")
        )


@pytest.mark.parametrize("files", [(), ("model.safetensors",), ("pytorch_model.bin",)])
@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llava", **FLAT, **MM},
        {"model_type": "llava_llama", **FLAT, **MM},
        {"model_type": "llava_mistral", **FLAT},
        {"model_type": "llava_qwen", **FLAT, "auto_map": {"AutoConfig": "x.X"}},
        {"model_type": "llama", **FLAT, "mm_vision_tower": "x"},
        {"model_type": "tinyllava", **FLAT, "mm_projector_type": "linear"},
    ],
    ids=lambda config: config["model_type"],
)
def test_llavas_original_format(tmp_path: Path, config: Any, files: tuple[str, ...]) -> None:
    name = checkpoint(tmp_path, config, *files)
    with pytest.raises(ValueError, match="LLaVA's original format") as caught:
        st3.load(name)
    assert "as -hf" in str(caught.value)
    assert "llava-hf/llava-1.5-7b-hf" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "florence2"}, "family 'florence2': it is an encoder-decoder"),
        ({"model_type": "mllama"}, "'mllama': layer 1 of its decoder takes 'cross_attention_mask'"),
        ({"model_type": "llama"}, "family 'llama' is none that answers questions about pictures"),
        ({"model_type": "of_tomorrow"}, "'of_tomorrow', which the installed .* does not know"),
        (
            {"model_type": "mine", "auto_map": {"AutoConfig": "x.X"}},
            r"brings code of its own.*such as LLaVA",
        ),
        (
            {"model_type": "llava", "text_config": {"model_type": "gpt_neox"}},
            "'layer_past'",
        ),
        ({"model_type": "llava", "text_config": {"model_type": "of_tomorrow"}}, "makes no config"),
        ({"model_type": "llava", "text_config": {"num_hidden_layers": "x"}}, "makes no config"),
        ({"hidden_size": 5}, "has no model_type"),
        ([1], "has no model_type"),
    ],
)
def test_other_families(tmp_path: Path, config: Any, message: str) -> None:
    """A folder with nothing but a configuration says what it is, not what it lacks."""
    name = checkpoint(tmp_path, config)
    for judge in (find_config, st3.load):
        with pytest.raises(ValueError, match=message) as caught:
            judge(name)
        assert "no weights" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_model_that_cannot_be_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for judge in (find_config, st3.load):
        with pytest.raises(OSError, match=r"^nobody/nothing: .*HF_HUB_OFFLINE is set") as caught:
            judge("nobody/nothing")
        assert "st3 can trim models that have their pictures in the prompt" in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("Qwen/Qwen2.5-VL-7B-Instruct", "qwen2_5_vl"), ("Qwen/Qwen2.5-VL-72B-AWQ", "qwen2_5_vl"),
        ("Qwen/Qwen3-VL-30B-A3B-Instruct", "qwen3_vl_moe"),
        ("Qwen/Qwen3-VL-235B-A22B-Instruct", "qwen3_vl_moe"),
        ("llava-hf/llava-v1.6-mistral-7b-hf", "llava_next"),
        ("deepseek-ai/deepseek-vl2", None), ("google/gemma-3-27b-it", "gemma3"),
        ("OpenGVLab/InternVL3_5-2B-HF", "internvl"), ("HuggingFaceTB/SmolVLM-Instruct", "smolvlm"),
        ("meta-llama/Llama-3.2-11B-Vision", None), ("nobody/nothing", None),
        ("google/gemma-3n-E2B-it", "gemma3n"), ("Qwen/Qwen3.5-4B", "qwen3_5"),
        ("Qwen/Qwen3.5-35B-A3B-FP8", "qwen3_5_moe"), ("moonshotai/Kimi-K2.5", "kimi_k25"),
        ("baidu/ERNIE-4.5-VL-424B-A47B-PT", "ernie4_5_vl_moe"),
        ("openbmb/MiniCPM-V-4.6-AWQ", "minicpmv4_6"), ("zai-org/GLM-4.6V-Flash", "glm46v"),
    ],
)  # fmt: skip
def test_a_name_speaks_of_a_family(name: str, family: str | None) -> None:
    """Among all that transformers has: of a few, gemma3n would be taken for gemma3."""
    assert name_family(name, {*CONFIG_MAPPING, *PROVEN}) == family


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("google/gemma-3n-E2B-it", "may be of the family gemma3n, on which st3 is not proven"),
        (
            "OpenGVLab/InternVL3-8B",
            "may be of the family internvl, which st3 trims where it is in transformers' own "
            "format, as OpenGVLab/InternVL3-8B-hf is",
        ),
        ("liuhaotian/llava-v1.5-7b", "may be of the family llava, .*, as llava-hf/llava-1.5-7b-hf"),
        ("Qwen/Qwen2.5-VL-7B-Instruct", "; it is of the family qwen2_5_vl, which st3 trims$"),
        ("Qwen/Qwen3-8B", "may be of the family qwen3, on which st3 is not proven"),
    ],
)
def test_a_name_alone_promises_nothing(
    monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=said):
        find_config(name)


def test_a_hub_that_is_not_there_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client would ask six times, with pauses of up to eight seconds."""
    from httpx2 import ConnectError

    asked: list[str] = []

    def nobody(url: str, **_: Any) -> Any:
        asked.append(url)
        raise ConnectError("no network")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(configs, "get_hf_file_metadata", nobody)
    with pytest.raises(OSError, match=r"^nobody/nothing: .* the Hub cannot be reached"):
        find_config("nobody/nothing")
    assert len(asked) == 1


def test_from_the_hub_only_the_configuration_is_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[str, str]] = []
    checkpoint(tmp_path, {"model_type": "of_tomorrow"})

    def fetch(place: str, file: str, **_: Any) -> str:
        asked.append((place, file))
        return str(tmp_path / file)

    monkeypatch.setattr(configs, "get_hf_file_metadata", lambda url, **_: None)
    monkeypatch.setattr(configs, "cached_file", fetch)
    with pytest.raises(ValueError, match="does not know"):
        load_config(Source("somebody/something"))
    assert asked == [("somebody/something", "config.json")]
