"""Shards of a WebDataset: tar files whose members of one name make a row, read by their places.

Only heads are read beforehand; a worker reads a picture's bytes where they lie.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from st3.batch.row import Row, make_row
from st3.inference.sources import MAX_BYTES, PictureError

_PICTURES = {"png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff"}


@dataclass(frozen=True, slots=True)
class Member:
    """Bytes of a file in a tar file."""

    shard: str
    name: str
    offset: int
    size: int

    def read(self) -> tuple[bytes, str]:
        """Its bytes, and its name.

        Raises:
            PictureError: unreadable, or too large.
        """
        if self.size > MAX_BYTES:
            raise PictureError(f"{self.name} is larger than {MAX_BYTES // 10**6} MB")
        try:
            with open(self.shard, "rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except OSError as error:
            raise PictureError(f"{self.shard} cannot be read: {error.strerror}") from None
        return data, f"{self.name} in {self.shard}"


def shard_rows(shards: Sequence[Path], prompt: str | None) -> list[Row]:
    """Rows of all shards: `name.jpg` with `name.json` (a `prompt`, and any `id`) or `name.prompt`.

    Without an id of its own a row is called by its shard and name. The picture is the first member
    that is one.

    Raises:
        ValueError: a shard that cannot be read or is compressed, or no prompt anywhere.
    """
    rows: list[Row] = []
    for shard in shards:
        try:
            with tarfile.open(shard, "r:") as tar:
                rows += _rows_of(tar, shard, len(rows), prompt)
        except (OSError, tarfile.TarError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(
                f"{shard} cannot be read as a tar file ({reason}): fetch it again, and unpack it "
                "if it is compressed"
            ) from error
    return rows


def _rows_of(tar: tarfile.TarFile, shard: Path, first: int, prompt: str | None) -> list[Row]:
    found: dict[str, dict[str, Any]] = {}
    for member in tar:
        if not member.isfile() or member.name.rpartition("/")[2].startswith("."):
            continue
        place, _, name = member.name.rpartition("/")
        stem, _, kind = name.partition(".")  # a WebDataset's name ends at its first dot
        key = f"{place}/{stem}" if place else stem
        columns = found.setdefault(key, {})
        kind = kind.lower()
        if kind.rpartition(".")[2] in _PICTURES and "image" not in columns:
            columns["image"] = Member(str(shard), member.name, member.offset_data, member.size)
        elif kind in {"json", "prompt", "prompt.txt"}:
            file = tar.extractfile(member)
            text = b"" if file is None else file.read()
            if kind == "json":
                columns |= _asked(text)
            else:
                columns["prompt"] = text.decode("utf-8", "replace").strip()
    return [
        make_row({"id": f"{shard.name}/{key}"} | columns, first + number, prompt)
        for number, (key, columns) in enumerate(found.items())
    ]


def _asked(text: bytes) -> dict[str, Any]:
    try:
        read = json.loads(text)
    except ValueError:
        return {}
    read = read if isinstance(read, dict) else {}
    return {key: read[key] for key in ("id", "prompt") if read.get(key) is not None}
