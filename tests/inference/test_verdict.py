"""Whether a model can be trimmed, of whatever a user calls it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import edit, tiny_checkpoint

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
        assert ", ".join(sorted(found.text_models)) == row[3]
        assert (found.example or "-") == row[4]


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
        "example": "llava-hf/llava-1.5-7b-hf",
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
