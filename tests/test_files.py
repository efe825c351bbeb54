"""Logs of one JSON line a result: what a full disk, a kill or an editor may do to them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from st3.files import append_rows, drop_half_row, plainly, read_rows


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
