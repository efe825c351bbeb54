"""Whether a model can be trimmed, of whatever a user calls it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from conftest import edit, tiny_checkpoint
from transformers import CONFIG_MAPPING

from st3.families.examples import EXAMPLES
from st3.families.names import name_family
from st3.families.proven import PROVEN
from st3.inference.presets import PRESETS
from st3.inference.verdict import verdict


def test_families_are_those_of_the_page() -> None:
    """docs/models.md is made by the oracles' own list of models."""
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.splitlines()
        if line.startswith("| `")
    ]
    works = {row[0].strip("`"): row for row in rows if row[1].startswith("works")}
    assert {*works} == {*PROVEN}
    for family, row in works.items():
        found = verdict(family)
        assert found.proven
        assert ", ".join(sorted(found.text_models)) == row[4]
        assert (found.example or "-") == row[5]


@pytest.mark.parametrize("name", PRESETS)
def test_short_names_work(name: str) -> None:
    found = verdict(name)
    assert found.proven
    assert len(found.text_models) == 1


def test_a_checkpoint(tmp_path: Path, st3_: Any) -> None:
    folder = tiny_checkpoint(tmp_path / "mine")
    done = st3_("models", folder, "--json")
    assert json.loads(done.out) == {
        "model": str(folder), "family": "llava", "text_models": ["llama"], "proven": True,
        "example": "llava-hf/llava-1.5-7b-hf", "shape": str(folder), "layers": 6,
    }  # fmt: skip
    edit(folder, "config.json", model_type="mystery")
    done = st3_("models", folder)
    assert done.code == 1
    assert "mystery" in done.err


@pytest.mark.parametrize("family", ["mllama", "florence2", "idefics"])
def test_what_cannot_be_is_refused_with_why(st3_: Any, family: str) -> None:
    done = st3_("models", family)
    assert done.code == 1
    assert done.out == ""
    assert len(done.err.splitlines()) == 1
    assert "st3 cannot trim" in done.err


def test_what_fits_is_not_said_to_work(st3_: Any) -> None:
    done = st3_("models", "minimax_m3_vl")
    assert done.code == 0
    assert done.out == "minimax_m3_vl: fits\n"
    assert "no oracle has proven it" in done.err


def test_a_folder_goes_before_a_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llava").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"it has no config\.json"):
        verdict("llava")


@pytest.mark.parametrize(
    ("said", "family"),
    [
        ("LLaVA", "llava"), ("llava 1.5", "llava"), ("LLaVA-1.6", "llava_next"),
        ("llava onevision", "llava_onevision"), ("Qwen2.5-VL", "qwen2_5_vl"),
        ("qwen25vl", "qwen2_5_vl"), ("qwen3 vl", "qwen3_vl"), ("Qwen3-VL-30B-A3B", "qwen3_vl_moe"),
        ("InternVL3", "internvl"), ("Gemma 3", "gemma3"), ("gemma 3 12b it", "gemma3"),
        ("SmolVLM", "smolvlm"), ("SmolVLM2", "smolvlm"), ("GLM-4.5V", "glm4v_moe"),
    ],
)  # fmt: skip
def test_families_as_people_write_them(said: str, family: str) -> None:
    assert verdict(said) == verdict(family)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("", "the model's name is empty"), (" ", "the model's name is empty"),
        ("Llama 3.2 Vision", "'mllama': layer 1 of its decoder takes 'cross_attention_mask'"),
        ("Ovis2.5", "no family 'Ovis2.5': did you mean ovis2"),
        ("DeepSeek-VL2", "no family 'DeepSeek-VL2': did you mean deepseek_vl"),
        ("hello", "no family 'hello': give a Hub id"),
        ("a b/c", "unknown model 'a b/c'"), ("./none", "there is no folder ./none"),
    ],
)  # fmt: skip
def test_what_no_family_is_called_is_said(st3_: Any, said: str, words: str) -> None:
    done = st3_("models", said)
    assert (done.code, done.out) == (1, "")
    assert words in done.err
    assert len(done.err.splitlines()) == 1


NAMED_ELSEWHERE = {
    "aya_vision", "gemma3", "glm46v", "granite4_vision", "granite_docling", "internvl", "llama4",
    "llava_next", "qwen2_vl",
}  # fmt: skip
"""Families whose code in transformers names another checkpoint than the example."""


def test_no_example_is_guessed() -> None:
    """transformers' own code of the family names it."""
    models = Path(transformers.__file__).parent / "models"
    for family, example in EXAMPLES.items():
        code = [path.read_text(encoding="utf-8") for path in (models / family).glob("*.py")]
        if code and family not in NAMED_ELSEWHERE:
            assert any(f'"{example}"' in text for text in code), family
        assert name_family(example, {*CONFIG_MAPPING, *PROVEN}) == family
        assert family in PROVEN


@pytest.mark.parametrize("name", [
    "LLaVA", "LLaVA-NeXT", "LLaVA-OneVision", "Qwen2-VL", "Qwen2.5-VL", "Qwen3-VL", "Qwen3.5",
    "InternVL", "Gemma 3", "Gemma 4", "PaliGemma", "Idefics3", "SmolVLM", "Mistral 3", "Llama 4",
    "GLM-4V", "Kimi K2.5", "Molmo2", "Phi-4-multimodal", "MiniCPM-V 4.6",
])  # fmt: skip
def test_what_the_readme_names_has_an_example(name: str) -> None:
    found = verdict(name)
    assert found.proven
    assert found.example


def test_what_it_saves_is_said_too(st3_: Any) -> None:
    """The figure is the schedule's; the command is one that runs without the checkpoint."""
    done = st3_("models", "llava 1.5")
    assert done.out == "llava 1.5: works\n"
    assert "st3 keeps 33% of 7b's visual tokens, mean over its 32 layers" in done.err
    assert "st3 profile --model 7b" in done.err
    assert "st3 verify 7b" in done.err
    assert "st3 verify Qwen/Qwen3.5-27B" in st3_("models", "Qwen3.5").err
