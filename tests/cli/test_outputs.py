"""Where commands write: links are followed by all of them, and bad places are named at once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from st3 import demo

WRITERS = {
    "kept": (
        ["run", demo.PICTURE, "hello", "--max-new-tokens", "1", "--show-kept"], "link.png", []
    ),
    "profile": (["profile", "--no-latency", "--methods", "st3", "--output"], "link.json", []),
    "plot": (["profile", "--no-latency", "--methods", "st3", "--plot"], "link.png", []),
    "attention": (
        ["attention-map", "--layers", "1", "--heads", "1", "--output"], "link", ["report.html"]
    ),
    "sweep": (
        ["sweep", "--scenes", "1", "--strides", "4", "--final-keep", "1%", "--max-new-tokens", "2",
         "--output"], "link", ["sweep.json", "cells.jsonl"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("writer", WRITERS)
def test_a_link_is_followed(st3_: Any, tmp_path: Path, writer: str) -> None:
    command, name, files = WRITERS[writer]
    link, target = tmp_path / name, tmp_path / "elsewhere" / "target"
    target.parent.mkdir()
    link.symlink_to(target)
    result = st3_(*command, link)
    assert result.code == 0, result.err
    assert link.is_symlink()
    assert target.is_file() if not files else all((target / file).is_file() for file in files)
    assert [path.name for path in target.parent.iterdir()] == ["target"]


@pytest.mark.parametrize("writer", WRITERS)
def test_links_in_a_circle(st3_: Any, tmp_path: Path, writer: str) -> None:
    command, name, _ = WRITERS[writer]
    (tmp_path / name).symlink_to(tmp_path / "other")
    (tmp_path / "other").symlink_to(tmp_path / name)
    result = st3_(*command, tmp_path / name)
    assert result.code == 2
    assert f"cannot be written ({os.strerror(40)})" in result.err
    assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_in_the_place_of_a_folder(st3_: Any, tmp_path: Path, writer: str) -> None:
    command, name, files = WRITERS[writer]
    (tmp_path / "file").write_text("mine")
    result = st3_(*command, tmp_path / "file" / name)
    assert result.code == 2
    assert ("is a file" if files else "there is no folder") in result.err
    assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize("writer", ["kept", "profile", "plot"])
def test_a_link_to_a_folder_that_is_not_there(st3_: Any, tmp_path: Path, writer: str) -> None:
    command, name, _ = WRITERS[writer]
    (tmp_path / name).symlink_to(tmp_path / "nowhere" / "target")
    result = st3_(*command, tmp_path / name)
    assert result.code == 2
    assert f"there is no folder {tmp_path / 'nowhere'}" in result.err
