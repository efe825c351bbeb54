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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("families")
    Image.linear_gradient("L").resize((600, 400)).convert("RGB").save(folder / "wide.png")
    return folder


def _made(name: str, folder: Path) -> Path:
    place = folder / name
    return place if place.exists() else save_checkpoint(name, place)


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


@pytest.mark.parametrize("name", ["qwen2_5_vl", "smolvlm"])
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


@pytest.mark.parametrize("name", ["qwen3_vl", "gemma3"])
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
