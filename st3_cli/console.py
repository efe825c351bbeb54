"""Where things are printed: results on stdout, everything else on stderr.

Text is printed as it is: no markup, no emoji, and only what `st3_cli.printable` lets through.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from st3_cli.printable import escape, escape_json, one_line, printable


class _Console(Console):
    """Every text on the way to the terminal, in a table or not, comes through `render_str`."""

    def __init__(self, **how: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **how)

    def render_str(self, text: str, **how: Any) -> Text:
        return super().render_str(printable(text), **how)


out = _Console()
err = _Console(stderr=True)
_ranks: list[str] = []  # who this is, where it leaves the talking to another process
_WIDEST = 14  # characters that a cell may ask for on a narrow terminal
_GAP = 2  # characters between columns


def leave_talking(rank: int) -> None:
    """Print nothing but errors from now on: this is one of several processes, not the first."""
    _ranks[:] = [f"st3 (rank {rank}): "]
    out.quiet = err.quiet = True


def print_json(document: dict[str, Any]) -> None:
    """One JSON document on stdout."""
    print_json_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def print_json_text(text: str) -> None:
    """JSON on stdout, in the letters that stdout can write."""
    if out.quiet:
        return
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    sys.stdout.write(escape_json(text, ascii_only=encoding != "utf8"))


def print_answer(text: str) -> None:
    """A piece of an answer on stdout, at once; as it is, but for what steers a terminal."""
    if out.quiet:
        return
    sys.stdout.write(escape(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def aside(text: str) -> None:
    """A line beside the result, dim on stderr."""
    err.print(one_line(text), style="dim", soft_wrap=True)


def say(message: str) -> None:
    """What went wrong, in one line on stderr."""
    err.quiet = False
    who = _ranks[0] if _ranks else "st3: "
    err.print(Text.assemble((who, "bold red"), one_line(message)), soft_wrap=True)


def print_table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on stdout; figures to the right.

    Columns that the terminal is too narrow for follow below, beside the first one.
    """
    columns = _columns(heads, rows)
    natural = sum(max(map(len, column)) + _GAP for column in columns)
    least = [
        max(_words(column[0]) + [min(len(cell), _WIDEST) for cell in column[1:]])
        for column in columns
    ]
    out.print(title, style="bold")
    for part in _parts(least, out.width):
        table = _table(heads)
        for number in part:
            head = columns[number][0].strip()
            table.add_column(
                # Heads may break, a figure and its unit may not.
                head if natural <= out.width else head.replace(" ", "\n"),
                justify="right" if number else "left",
                overflow="fold",
                min_width=least[number],
            )
        _fill(table, [columns[number] for number in part])


def print_texts(*tables: tuple[str, Sequence[str], Iterable[Sequence[str]]]) -> None:
    """Tables of text, each a title, heads and rows, whose cells may take several lines.

    Where the terminal is too narrow for one of them, all go row by row, each a paragraph under its
    first cell.
    """
    ready = [(title, _columns(heads, rows)) for title, heads, rows in tables]
    least = [[max(_words(*column)) for column in columns] for _, columns in ready]
    fits = all(sum(few) + _GAP * len(few) <= out.width for few in least)
    for (title, columns), few in zip(ready, least, strict=True):
        out.print(title, style="bold")
        if not fits:
            _paragraphs([column[0] for column in columns], [*zip(*columns, strict=True)][1:])
            continue
        table = _table([column[0] for column in columns])
        widths = _widths(few, columns, out.width - _GAP * len(few))
        for column, width in zip(columns, widths, strict=True):
            table.add_column(column[0].strip(), overflow="fold", width=width)
        _fill(table, columns)


def _columns(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[list[str]]:
    return [[printable(cell) for cell in column] for column in zip(heads, *rows, strict=True)]


def _words(*cells: str) -> list[int]:
    """Their lengths."""
    return [len(word) for cell in cells for word in cell.split()] or [0]


def _table(heads: Sequence[str]) -> Table:
    return Table(
        box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, show_header=any(heads),
    )  # fmt: skip


def _fill(table: Table, columns: Sequence[Sequence[str]]) -> None:
    for row in [*zip(*columns, strict=True)][1:]:
        table.add_row(*row)
    out.print(table)


def _widths(least: Sequence[int], columns: Sequence[Sequence[str]], room: int) -> list[int]:
    """Characters for each column of text: what it needs, and a fair share of what is left."""
    wanted = [max(few, *map(len, column)) - few for few, column in zip(least, columns, strict=True)]
    spare = min(room - sum(least), sum(wanted))
    return [
        few + more * spare // max(1, sum(wanted)) for few, more in zip(least, wanted, strict=True)
    ]


def _paragraphs(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Rows of text below each other: the first cell, and what else is said, under it."""
    for first, *others in rows:
        out.print(Text(first, style="bold"))
        for head, cell in zip(heads[1:], others, strict=True):
            if cell not in ("", "-"):
                line = Text(f"{head}: {cell}" if head else cell)
                out.print(Padding(line, (0, 0, 0, 2)))
    out.print()


def _parts(least: Sequence[int], width: int) -> list[list[int]]:
    """Numbers of columns that fit side by side: the first one and some others, in each part."""
    parts: list[list[int]] = [[]]
    left = width - least[0] - _GAP
    for number, characters in enumerate(least[1:], start=1):
        if parts[-1] and characters + _GAP > left:
            parts.append([])
            left = width - least[0] - _GAP
        parts[-1].append(number)
        left -= characters + _GAP
    return [[0, *part] for part in parts]


def quiet_imports() -> None:
    """Before anything large is imported: torchao, where it is installed, comes with transformers.

    It says which of its kernels are for other machines; torch's profiler, whenever it begins.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


def quiet_transformers() -> None:
    """Leave stderr to us: the warnings of transformers and the Hub are for programmers."""
    import transformers

    warnings.showwarning = _show_warning
    for name in ("accelerate", "bitsandbytes"):  # which has a line for every layer
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    transformers.logging.set_verbosity_error()
    if not err.is_terminal:
        transformers.logging.disable_progress_bar()


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int,
    file: Any = None, line: str | None = None,
) -> None:  # fmt: skip
    """One line on stderr, without the place in the code."""
    aside(f"note: {message}")
