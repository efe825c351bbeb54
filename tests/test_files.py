"""Files are written whole or not at all, through links too."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from st3.files import append_rows, follow, make_folder, read_rows, replacing, write_text


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    target, link = tmp_path / "deep" / "target.txt", tmp_path / "link.txt"
    link.symlink_to("deep/target.txt")  # to nothing yet
    again = tmp_path / "again.txt"
    again.symlink_to(link)
    for path, text in ((link, "first"), (again, "second"), (target, "third")):
        write_text(path, text)
        assert link.is_symlink()
        assert again.is_symlink()
        assert not target.is_symlink()
        assert target.read_text() == again.read_text() == text
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "again.txt", "deep", "link.txt", "target.txt",
    ]  # fmt: skip


def test_a_link_to_another_kind_of_name(tmp_path: Path) -> None:
    """Who writes goes by the suffix that was asked for."""
    link = tmp_path / "picture.png"
    link.symlink_to(tmp_path / "blob")
    with replacing(link) as temporary:
        assert temporary.suffix == ".png"
        assert temporary.parent == tmp_path
        temporary.write_text("x")
    assert (tmp_path / "blob").read_text() == "x"


def test_what_fails_leaves_the_target(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("before")
    link.symlink_to(target)

    def fail() -> None:
        with replacing(link) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert target.read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "target"]


def test_links_in_a_circle(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.symlink_to(other)
    other.symlink_to(one)
    for write in (
        follow,
        make_folder,
        lambda path: write_text(path, "x"),
        lambda path: write_text(path / "inside", "x"),
        lambda path: append_rows(path, [{}]),
    ):
        with pytest.raises(OSError, match=os.strerror(40)):
            write(one)
    assert one.is_symlink()
    assert len(list(tmp_path.iterdir())) == 2


def test_folders_and_logs_through_links(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "far" / "folder")
    for _ in range(2):  # to nothing, and to a folder
        make_folder(link)
        assert (tmp_path / "far" / "folder").is_dir()
    assert link.is_symlink()
    (link / "rows").symlink_to(tmp_path / "rows.jsonl")
    append_rows(link / "rows", [{"a": 1}])
    append_rows(link / "rows", [{"a": "猫 \udcff"}])
    assert read_rows(tmp_path / "rows.jsonl") == [{"a": 1}, {"a": "猫 \udcff"}]
