"""Other people's checkpoints: what they ask for is set aside and said, what they are is judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import edit, tiny_checkpoint

import st3
from st3 import demo

ASKED = {
    "use_cache": False, "num_beams": 3, "num_return_sequences": 2, "repetition_penalty": 1.5,
    "return_dict_in_generate": True, "output_attentions": True, "min_new_tokens": 9,
    "prefill_chunk_size": 16, "suppress_tokens": [50, 51], "prompt_lookup_num_tokens": 3,
    "max_length": 5,
}  # fmt: skip
FIGURES = ("answer", "new_tokens", "visual_tokens", "kv_cache", "untrimmed")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_checkpoint(tmp_path_factory.mktemp("asking"))
    edit(folder, "generation_config.json", **ASKED)
    return folder


def notes(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith("note: ")]


def untimed(document: Any) -> Any:
    """Without times, and without what names the checkpoint."""
    if isinstance(document, dict):
        return {
            key: untimed(value)
            for key, value in document.items()
            if not key.endswith(("_ms", "machine")) and key not in {"timing", "model", "settings"}
        }
    return [untimed(value) for value in document] if isinstance(document, list) else document


def test_run_answers_as_documented_and_says_once_what_it_set_aside(
    st3_: Any, plain: Path, asking: Path
) -> None:
    command = ("run", demo.PICTURE, "hello", "--json", "--compare", "--max-new-tokens", 6)
    want, found = (st3_(*command, "--model", folder) for folder in (plain, asking))
    assert want.code == found.code == 0, found.err
    assert want.err == ""
    assert untimed(json.loads(found.out)) == untimed(json.loads(want.out))
    (note,) = notes(found.err)
    assert len(found.err.splitlines()) == 1
    for key, value in ASKED.items():
        assert (f"{key}={value}" in note) == (key != "max_length")  # which is an option of ours


def test_a_temperature_is_all_that_is_sampled_with(st3_: Any, plain: Path, asking: Path) -> None:
    command = ("run", demo.PICTURE, "hello", "--json", "--max-new-tokens", 6, "--temperature", 2)
    want, found = (st3_(*command, "--model", folder) for folder in (plain, asking))
    assert json.loads(found.out)["answer"] == json.loads(want.out)["answer"]
    greedy = st3_(*command[:-2], "--model", plain)
    assert json.loads(greedy.out)["answer"] != json.loads(want.out)["answer"]


@pytest.mark.slow
def test_attention_map(st3_: Any, tmp_path: Path, plain: Path, asking: Path) -> None:
    documents = []
    for folder in (plain, asking):
        result = st3_(
            "attention-map", demo.PICTURE, "hello", "--json", "--compare", "--new-tokens", 4,
            "--model", folder, "--output", tmp_path / folder.name,
        )  # fmt: skip
        assert result.code == 0, result.err
        assert len(notes(result.err)) == (folder == asking)
        documents.append(untimed(json.loads(result.out)))
    assert documents[0] == documents[1]


def test_sweep_finds_none_the_same_as_untrimmed(st3_: Any, tmp_path: Path, asking: Path) -> None:
    """Exactly, whatever the checkpoint asks for; the note comes once, not for every answer."""
    lines = [{"image": str(demo.PICTURE), "prompt": prompt} for prompt in ("hello", "hello you")]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    result = st3_(
        "sweep", "--model", asking, "--data", tmp_path / "q.jsonl", "--json", "--methods", "none",
        "--strides", "1", "--final-keep", "5%", "--taus", "none", "--max-new-tokens", 5,
        "--output", tmp_path / "out",
    )  # fmt: skip
    assert result.code == 0, result.err
    cells = {row["spec"]: row for row in json.loads(result.out)["cells"]}
    assert cells["none"]["fidelity"] == cells["none"]["token_agreement"] == 1
    assert cells["none"]["kl"] == 0
    assert len(notes(result.err)) == 1


def test_profile_of_trained_weights(st3_: Any, asking: Path) -> None:
    result = st3_(
        "profile", "--model", asking, "--weights", "pretrained", "--text-tokens", 8,
        "--new-tokens", 4, "--repeats", 1, "--min-seconds", 0, "--methods", "none", "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    rows = {row["method"]: row for row in json.loads(result.out)["rows"]}
    assert rows["none"]["ttft_ms"] > 0
    assert len(notes(result.err)) == 1


def everywhere(st3_: Any, model: str, folder: Path) -> str:
    """The one line that every command and `st3.load` say about a model."""
    commands = (
        ("run",), ("attention-map", "--output", folder / "a"), ("sweep", "--output", folder / "s"),
        ("profile",),
    )  # fmt: skip
    with pytest.raises((ValueError, OSError)) as caught:
        st3.load(model)
    for command in commands:
        result = st3_(*command, "--model", model)
        assert result.code == 1
        assert result.out == ""
        assert result.err.strip() == f"st3: {caught.value}"
    return str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "florence2"}, "family 'florence2'"),
        ({"model_type": "llava_llama", "mm_projector_type": "linear"}, "LLaVA's original format"),
        ({"model_type": "x", "auto_map": {"AutoConfig": "x.X"}}, "brings code of its own"),
    ],
)
def test_every_command_judges_alike(
    st3_: Any, tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    (tmp_path / "model").mkdir()
    edit(tmp_path / "model", "config.json", **config)
    assert message in everywhere(st3_, str(tmp_path / "model"), tmp_path)


def test_every_command_says_what_cannot_be_looked_up(
    st3_: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in everywhere(st3_, "Qwen/Qwen2-VL-7B-Instruct", tmp_path)


def test_profile_needs_no_weights(st3_: Any, tmp_path: Path) -> None:
    """A family that can be trimmed is profiled from its configuration; to run it lacks weights."""
    tiny_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    result = st3_(
        "profile", "--model", tmp_path, "--text-tokens", 8, "--new-tokens", 4, "--repeats", 1,
        "--min-seconds", 0, "--methods", "none", "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    result = st3_("run", "--model", tmp_path)
    assert result.code == 1
    assert "has no weights: no *.safetensors file" in result.err


def test_a_tokenizer_without_pad_token(st3_: Any, tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "model")
    edit(folder, "tokenizer_config.json", "pad_token")
    lines = [{"image": str(demo.PICTURE), "prompt": prompt} for prompt in ("hello", "hello you")]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    command = (
        "sweep", "--model", folder, "--data", tmp_path / "q.jsonl", "--strides", "1",
        "--final-keep", "5%", "--taus", "none", "--max-new-tokens", 3, "--output", tmp_path / "out",
    )  # fmt: skip
    result = st3_(*command)
    assert result.code == 1
    assert "--batch-size 1" in result.err
    assert len(result.err.strip().splitlines()) == 1
    result = st3_(*command[:-1], tmp_path / "one", "--batch-size", 1)
    assert result.code == 0, result.err
