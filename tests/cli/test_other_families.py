"""The commands on tiny checkpoints of other families than LLaVA-1.5, with their real processors."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import edit
from families.checkpoints import CHECKPOINTS, save_checkpoint
from PIL import Image

TOKENS = {
    "llava_next": 2144, "llava_onevision": 2709, "qwen2_5_vl": 294, "qwen3_vl": 228,
    "internvl": 7 * 256, "gemma3": 256, "smolvlm": 7 * 81,
}  # fmt: skip
"""Visual tokens of a picture of 600 x 400 pixels, as the families' papers and cards have them: five
tiles, of which four share 48 x 32 places and 32 line ends; patches of 28 or 32 pixels; 6 tiles
and a thumbnail; always 256."""
BY_TIME = [
    pytest.param(name, marks=[pytest.mark.slow] if TOKENS[name] > 1000 else []) for name in TOKENS
]
"""All families; where thousands of tokens take long, for those who ask for slow tests."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("families")
    Image.linear_gradient("L").resize((600, 400)).convert("RGB").save(folder / "wide.png")
    return folder


def _made(name: str, folder: Path) -> Path:
    place = folder / name
    return place if place.exists() else save_checkpoint(name, place)


def test_all_families_have_a_number() -> None:
    assert TOKENS.keys() == CHECKPOINTS.keys()


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_run_draws_what_is_kept(name: str, folder: Path, st3_: Any) -> None:
    drawn = folder / f"{name}.png"
    result = st3_(
        "run", folder / "wide.png", "what do you see", "--model", _made(name, folder),
        "--max-new-tokens", 3, "--show-kept", drawn, "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert json.loads(result.out)["visual_tokens"]["total"] == TOKENS[name]
    assert np.asarray(Image.open(drawn)).std() > 5


@pytest.mark.parametrize("name", BY_TIME)
def test_attention_map(name: str, folder: Path, st3_: Any) -> None:
    result = st3_(
        "attention-map", folder / "wide.png", "what do you see", "--model", _made(name, folder),
        "--new-tokens", 2, "--layers", "1,6", "--heads", "1,2", "--output", folder / f"look-{name}",
        "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    document = json.loads(result.out)
    assert document["visual_tokens"] == TOKENS[name]
    assert all((folder / f"look-{name}" / file).exists() for file in document["files"])


@pytest.mark.parametrize("name", BY_TIME)
def test_sweep(name: str, folder: Path, st3_: Any) -> None:
    asked = folder / "asked.jsonl"
    line = {"image": str(folder / "wide.png"), "prompt": "what do you see", "answer": "red"}
    asked.write_text("\n".join(json.dumps(line) for _ in range(2)), encoding="utf-8")
    result = st3_(
        "sweep", "--model", _made(name, folder), "--data", asked, "--strides", "1,2",
        "--final-keep", "10%", "--taus", "none", "--max-new-tokens", 3, "--output",
        folder / f"sweep-{name}",
        "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    cells = json.loads(result.out)["cells"]
    assert len(cells) == 2
    assert all(0 < cell["kv_ratio"] < 1 for cell in cells)


def _with_settings(name: str, folder: Path, **settings: Any) -> Path:
    """A copy of a checkpoint whose processor has other settings; of pictures, `pictures`."""
    place = save_checkpoint(name, folder)
    file = place / "processor_config.json"
    found = json.loads(file.read_text(encoding="utf-8"))
    found["image_processor"] |= settings.pop("pictures", {})
    file.write_text(json.dumps(found | settings), encoding="utf-8")
    return place


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("gemma3", {"image_seq_length": 100}, "tokens: 100, features: 256"),
        ("qwen2_5_vl", {"pictures": {"merge_size": 3}}, "does not fit the model"),
        ("qwen2_5_vl", {"pictures": {"patch_size": 16}}, "does not fit the model"),
        ("llava_next", {"patch_size": 7}, "4656 of them visual"),
        ("qwen3_vl", {"processor_class": "NoProcessor"}, "has no processor 'NoProcessor'"),
    ],
)
@pytest.mark.parametrize("drawn", [True, False])
def test_files_of_another_checkpoint(
    name: str, settings: dict[str, Any], words: str, drawn: bool, tmp_path: Path, st3_: Any
) -> None:
    picture = tmp_path / "small.png"
    Image.new("RGB", (50, 50), "red").save(picture)
    place = _with_settings(name, tmp_path / "model", **settings)
    show = ("--show-kept", tmp_path / "kept.png") if drawn else ()
    result = st3_("run", picture, "what", "--model", place, "--max-new-tokens", 2, *show)
    assert result.code == 1
    assert result.out == ""
    assert words in result.err or drawn
    assert len(result.err.splitlines()) == 1
    assert not (tmp_path / "kept.png").exists()


def test_a_tokenizer_that_is_broken_or_missing(tmp_path: Path, st3_: Any, folder: Path) -> None:
    place = save_checkpoint("qwen3_vl", tmp_path / "model")
    file = place / "tokenizer.json"
    file.write_text(file.read_text(encoding="utf-8")[:300], encoding="utf-8")
    asked = ("run", folder / "wide.png", "what", "--model", place)
    assert "its tokenizer cannot be read: Unterminated string" in st3_(*asked).err
    file.unlink()
    (place / "tokenizer_config.json").unlink()
    result = st3_(*asked)
    assert result.code == 1
    assert "its tokenizer does not know <|image_pad|>" in result.err


@pytest.mark.filterwarnings("default")
def test_without_a_chat_template_the_format_is_said(
    tmp_path: Path, st3_: Any, folder: Path
) -> None:
    place = save_checkpoint("qwen3_vl", tmp_path / "model")
    (place / "chat_template.jinja").unlink()
    result = st3_("run", folder / "wide.png", "what", "--model", place, "--max-new-tokens", 2)
    assert result.code == 0
    assert "no chat template, so the question is put as LLaVA-1.5" in result.err


def test_a_cache_larger_than_stock_is_explained(folder: Path, st3_: Any) -> None:
    result = st3_(
        "run", folder / "wide.png", "what", "--model", _made("gemma3", folder),
        "--max-new-tokens", 2,
    )  # fmt: skip
    assert result.code == 0
    assert "larger than untrimmed: layers with a sliding window" in result.err


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="it is there")
def test_what_only_torchvision_can_do_is_said_in_one_line(folder: Path, st3_: Any) -> None:
    place = save_checkpoint("qwen2_5_vl", folder / "copy")
    edit(place, "processor_config.json", processor_class="PixtralProcessor")
    result = st3_("run", folder / "wide.png", "what", "--model", place)
    assert result.code == 1
    assert "pip install 'st3[vision]'" in result.err
    assert len(result.err.strip().splitlines()) <= 3


def test_a_checkpoint_without_a_processor(folder: Path, st3_: Any) -> None:
    place = save_checkpoint("qwen3_vl", folder / "bare")
    (place / "processor_config.json").unlink()
    result = st3_("run", folder / "wide.png", "what", "--model", place)
    assert result.code == 1
    assert "has no processor of pictures and text: copy processor_config.json" in result.err
    (place / "processor_config.json").write_text("{", encoding="utf-8")
    result = st3_("run", folder / "wide.png", "what", "--model", place)
    assert result.code == 1
    assert f"{place / 'processor_config.json'} makes no processor:" in " ".join(result.err.split())
