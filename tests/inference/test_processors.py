"""What older checkpoints leave out of the processor is taken from the model's configuration."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from conftest import edit, tiny_checkpoint, tiny_config
from transformers import SiglipVisionConfig

import st3
from st3 import demo
from st3.demo.packaging import build_processor
from st3.inference.generation import prepare, prepare_batch
from st3.inference.pictures import open_picture
from st3.inference.processors import complete

KEYS = ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "checkpoint", layers=4)


def ids(folder: Path) -> list[int]:
    """Of a prompt whose visual tokens the model itself has counted: it runs."""
    model, processor = st3.load(str(folder), device="cpu")
    inputs = prepare(model, processor, open_picture(demo.PICTURE), "how many?")
    model(**inputs)
    return inputs["input_ids"][0].tolist()


@pytest.mark.parametrize(
    "missing", [keys for n in (1, 2, 3) for keys in combinations(KEYS, n)], ids="+".join
)
def test_whatever_is_missing_is_filled(checkpoint: Path, missing: tuple[str, ...]) -> None:
    want = ids(checkpoint)
    edit(checkpoint, "processor_config.json", *missing)
    assert ids(checkpoint) == want


def test_the_old_layout(checkpoint: Path) -> None:
    """An image processor's file alone, as before there were files for processors."""
    want = ids(checkpoint)
    file = checkpoint / "processor_config.json"
    pictures = json.loads(file.read_text())["image_processor"]
    edit(checkpoint, "preprocessor_config.json", **pictures, processor_class="LlavaProcessor")
    file.unlink()
    assert ids(checkpoint) == want


@pytest.mark.parametrize(
    ("strategy", "tower", "additional"),
    [("default", "clip", 1), ("full", "clip", 1), ("full", "siglip", 0)],
)
def test_the_tower_tells_what_it_adds(strategy: str, tower: str, additional: int) -> None:
    config: Any = tiny_config(layers=2)
    config.vision_feature_select_strategy = strategy
    if tower == "siglip":
        config.vision_config = SiglipVisionConfig(
            image_size=32, patch_size=4, hidden_size=32, num_hidden_layers=1,
            num_attention_heads=2, intermediate_size=64,
        )  # fmt: skip
    processor = build_processor()
    processor.patch_size = processor.vision_feature_select_strategy = None
    processor.num_additional_image_tokens = 0
    complete(processor, config)
    assert processor.patch_size == 4
    assert processor.vision_feature_select_strategy == strategy
    assert processor.num_additional_image_tokens == additional


def test_what_it_has_stays() -> None:
    processor = build_processor()
    complete(processor, tiny_config(layers=2))
    assert processor.patch_size == 8


@pytest.mark.parametrize("key", KEYS[:2])
def test_what_nobody_tells_is_named(key: str) -> None:
    config: Any = tiny_config(layers=2)
    owner = config.vision_config if key == "patch_size" else config
    object.__setattr__(owner, key, None)
    processor = build_processor()
    setattr(processor, key, None)
    with pytest.raises(ValueError, match=f"^processor_config.json has no {key}, and config.json"):
        complete(processor, config)


def test_a_checkpoint_without_a_processor(checkpoint: Path) -> None:
    (checkpoint / "processor_config.json").unlink()
    with pytest.raises(ValueError, match=r"has no processor of pictures and text: copy proc"):
        st3.load(str(checkpoint))


def test_a_processor_that_brings_code(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on stdin"))
    edit(
        checkpoint, "processor_config.json", processor_class="Mine",
        auto_map={"AutoProcessor": "mine.Mine"},
    )  # fmt: skip
    (checkpoint / "mine.py").write_text("raise SystemExit('the code was run')\n")
    with pytest.raises(ValueError, match="its processor is code of its own"):
        st3.load(str(checkpoint))
    assert capsys.readouterr().out == ""


def test_no_pad_token_is_no_batch(checkpoint: Path) -> None:
    edit(checkpoint, "tokenizer_config.json", "pad_token")
    model, processor = st3.load(str(checkpoint), device="cpu")
    picture = open_picture(demo.PICTURE)
    prepare(model, processor, picture, "how many?")
    with pytest.raises(ValueError, match=r"no pad token.*--batch-size 1"):
        prepare_batch(model, processor, [picture] * 2, ["how many?"] * 2)
