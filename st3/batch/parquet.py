"""Parquet files, in and out, through PyArrow (`pip install "st3[parquet]"`)."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from st3.batch.row import KEYS, NOTHING, Row
from st3.batch.tables import resolved, table_rows
from st3.files import plainly, replacing, valid
from st3.inference.sources import MAX_BYTES, PictureError, read_source

_CHUNK = 10_000  # rows held at a time on the way out
_LACKING = 'Parquet needs PyArrow: pip install "st3[parquet]"'


@dataclass(frozen=True, slots=True)
class Cell:
    """A picture in a Parquet file, as the datasets of Hugging Face keep it: bytes, or a path."""

    file: str
    column: str
    group: int
    index: int
    part: int | None = None

    def read(self) -> tuple[bytes, str]:
        """Its bytes, and what to call it.

        Raises:
            PictureError: unreadable, none, or too large.
        """
        name = f"row {self.index + 1} of group {self.group + 1} in {self.file}"
        try:
            value = _column(self.file, self.column, self.group)[self.index].as_py()
        except Exception as error:  # a damaged page raises whatever its codec does
            raise PictureError(f"{name} cannot be read: {error}") from None
        value = value if self.part is None else value[self.part]
        data = value
        if isinstance(value, dict):
            data, path = value.get("bytes"), value.get("path")
            if data is None and path not in {None, "", "-"}:
                return read_source(resolved(path, Path(self.file).parent))
        if data is None:
            raise PictureError(f"{name} {NOTHING}")
        if not data:
            raise PictureError(f"{name} is empty")
        if len(data) > MAX_BYTES:
            raise PictureError(f"{name} is larger than {MAX_BYTES // 10**6} MB")
        return data, name


@functools.lru_cache(maxsize=1)
def _column(file: str, column: str, group: int) -> Any:
    """One column of one group of rows, which rows that follow each other share."""
    return _pyarrow().ParquetFile(file).read_row_group(group, columns=[column])[column]


def _pyarrow() -> Any:
    """PyArrow's module for Parquet.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError:
        raise ValueError(_LACKING) from None
    return pyarrow.parquet


def check_parquet() -> None:
    """See that there is PyArrow.

    Raises:
        ValueError: there is none.
    """
    _pyarrow()


def parquet_rows(path: Path, prompt: str | None, first: int = 0) -> list[Row]:
    """Rows of a Parquet file: columns as in JSONL, or pictures' bytes themselves.

    Raises:
        ValueError: no PyArrow, unreadable, or columns missing.
    """
    parquet = _pyarrow()
    rows: list[dict[str, Any]] = []
    try:
        with plainly("read", path):
            path.open("rb").close()
        file = parquet.ParquetFile(path)
        schema = file.schema_arrow
        wanted = [name for name in KEYS if name in schema.names]
        for group in range(file.num_row_groups):
            rows += _group(file, str(path), schema, wanted, group)
    except Exception as error:
        if isinstance(error.__cause__, OSError):  # in words already
            raise
        raise ValueError(f"{path} cannot be read as Parquet: {error}") from error
    return table_rows(rows, schema.names, str(path), path.parent, prompt, first)


def _group(
    file: Any, path: str, schema: Any, wanted: list[str], group: int
) -> list[dict[str, Any]]:
    """Light rows of one group: places of bytes, values of all else."""
    import pyarrow as pa

    stored = [name for name in wanted if _holds_bytes(pa, schema.field(name).type)]
    plain = [name for name in wanted if name not in stored]
    count = file.metadata.row_group(group).num_rows
    table = file.read_row_group(group, columns=plain) if plain else None
    rows = table.to_pylist() if table is not None else [{} for _ in range(count)]
    for name in stored:
        field = schema.field(name).type
        many = pa.types.is_list(field) or pa.types.is_large_list(field)
        if many:
            column = file.read_row_group(group, columns=[name])[name]
            for index, (row, value) in enumerate(zip(rows, column, strict=True)):
                row[name] = None
                if value.is_valid:
                    row[name] = [Cell(path, name, group, index, n) for n in range(len(value))]
        else:
            there = _there(file, name, field, group)
            for index, row in enumerate(rows):
                row[name] = Cell(path, name, group, index) if there[index] else None
    return rows


def _there(file: Any, name: str, kind: Any, group: int) -> Sequence[bool]:
    """Which rows of a group are not null; bytes are read for it only where some may be."""
    import pyarrow as pa

    leaf = name
    if pa.types.is_struct(kind) and kind.get_field_index("path") >= 0:
        leaf = f"{name}.path"
    metadata = file.metadata.row_group(group)
    columns = [metadata.column(number) for number in range(metadata.num_columns)]
    known = next((x.statistics for x in columns if x.path_in_schema == leaf), None)
    if known is not None and known.has_null_count and not known.null_count:
        return [True] * metadata.num_rows
    found: list[bool] = file.read_row_group(group, columns=[leaf])[name].is_valid().to_pylist()
    return found


def _holds_bytes(pa: Any, kind: Any) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _holds_bytes(pa, kind.value_type)
    if pa.types.is_struct(kind):
        return any(kind.field(n).name == "bytes" for n in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def stored_results(path: Path) -> Iterator[dict[str, Any]]:
    """Results' documents of a table.

    Raises:
        ValueError: no PyArrow, or unreadable.
    """
    parquet = _pyarrow()
    try:
        for part in parquet.ParquetFile(path).iter_batches(_CHUNK):
            for row in part.to_pylist():
                yield {key: value for key, value in row.items() if value is not None}
    except Exception as error:  # a damaged page raises whatever its codec does
        raise ValueError(f"{path} cannot be read as Parquet: {error}") from error


def count_errors(path: Path) -> int:
    """Rows with an error in a table of results.

    Raises:
        ValueError: no PyArrow, or unreadable.
    """
    parquet = _pyarrow()
    try:
        parts = parquet.ParquetFile(path).iter_batches(columns=["error"])
        return sum(len(part) - part.column(0).null_count for part in parts)
    except Exception as error:  # a damaged page raises whatever its codec does
        raise ValueError(f"{path} cannot be read as Parquet: {error}") from error


def write_parquet(path: Path, rows: Iterable[dict[str, Any]], whole_ids: bool) -> None:
    """Results as a table, whole or not at all.

    Args:
        path: of the table.
        rows: results' documents.
        whole_ids: all ids are whole numbers of 64 bits; they are texts otherwise.

    Raises:
        ValueError: no PyArrow. OSError: the disk does not let us.
    """
    parquet = _pyarrow()
    import pyarrow as pa

    text, whole = pa.string(), pa.int64()
    kinds = {
        "row": whole, "id": whole if whole_ids else text, "answer": text, "prompt_tokens": whole,
        "visual_tokens": whole, "kept_visual_tokens": pa.float64(), "new_tokens": whole,
        "finish_reason": text, "error": text,
    }  # fmt: skip
    schema = pa.schema(list(kinds.items()))
    waiting = iter(rows)
    with replacing(path) as temporary, parquet.ParquetWriter(temporary, schema) as writer:
        while chunk := list(islice(waiting, _CHUNK)):
            if not whole_ids:
                chunk = [row | {"id": str(row["id"])} for row in chunk]
            chunk = [
                {key: valid(x) if isinstance(x, str) else x for key, x in row.items()}
                for row in chunk
            ]
            writer.write_table(pa.Table.from_pylist(chunk, schema=schema))
