"""Files are written whole or not at all, through links too; logs outlive disks and editors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from st3.files import (
    append_rows,
    drop_half_row,
    follow,
    make_folder,
    plainly,
    read_rows,
    replacing,
    write_text,
)


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


def test_a_line_is_what_ends_with_a_newline_alone(tmp_path: Path) -> None:
    """Answers may hold what Unicode takes for an end of line."""
    rows = [{"text": "one\u2028two\x85three"}, {"text": "four"}]
    append_rows(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path / "rows.jsonl") == rows


@pytest.mark.parametrize("line", [b"what?", b"[1]", b"", b'{"a": "\xff"}'])
def test_a_broken_line_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b"\n{}\n")
    with pytest.raises(ValueError, match=r"rows.jsonl, line 2, is no JSON object: take that line"):
        read_rows(path)


def test_half_a_write_is_an_error_and_its_line_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fills up takes a part, and says so only of the next write."""
    path, write = tmp_path / "rows.jsonl", os.write
    append_rows(path, [{"a": 1}])

    def half(handle: int, data: Any) -> int:
        return write(handle, data[: len(data) // 2])

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", half)
        with pytest.raises(OSError, match="No space left on device"):
            append_rows(path, [{"b": "x" * 100}])
    drop_half_row(path)
    append_rows(path, [{"c": 3}])
    assert read_rows(path) == [{"a": 1}, {"c": 3}]


def test_what_a_disk_says_becomes_a_line(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "file"
    with (
        pytest.raises(ValueError, match=r"^cannot read .*file: No such file or directory; so what"),
        plainly("read", path, "; so what"),
    ):
        path.read_text()
