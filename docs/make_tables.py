"""Render every table of README and docs from docs/benchmarks: `python docs/make_tables.py`.

A table stands between two comments, the first of which says what it shows:

    <!-- table: profile-7b.json: Compute of the decoder layers; KV cache -->
    ...
    <!-- end of table -->

With --check nothing is written, and files that would change are an error.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import first_table

from st3.benchmark import batches, compressed, engines
from st3.benchmark import tables as suite
from st3.demo import evaluate
from st3.files import read_rows
from st3.machine import made_with
from st3.profiling.tables import tables
from st3.serving.http import batching_table
from st3.serving.vllm import tables as vllm
from st3.sweep import album
from st3.tables import Table

ROOT = Path(__file__).parent.parent
_BLOCK = re.compile(
    r"(<!-- table: (?P<file>\S+): (?P<titles>[^>]*?) -->\n).*?(<!-- end of table -->)", re.DOTALL
)


def render(text: str) -> str:
    """The same page with all of its tables made anew."""
    return _BLOCK.sub(lambda match: match[1] + _tables(match) + match[4], text)


def _dropping(path: Path) -> str:
    """The demo's training loss under each method that dropped tokens, late in each stage."""
    log = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    log = [line for line in log if line["step"] > line["of"] / 2]
    key = "answer, "
    stages = list(dict.fromkeys(x["stage"] for x in log if any(name.startswith(key) for name in x)))
    names = sorted({name.removeprefix(key) for line in log for name in line if key in name})
    rows = []
    for name in names:
        row = [name]
        for stage in stages:
            lines = [line for line in log if line["stage"] == stage]
            values = [line[key + name] for line in lines if key + name in line]
            row.append(f"{sum(values) / len(values):.4f}")
        rows.append(tuple(row))
    title = (
        "Cross-entropy of answer tokens in nats, as weighed in training; second half of each stage"
    )
    return "\n" + Table(title, ("dropped by", *stages), tuple(rows)).markdown()


def _tables(match: re.Match[str]) -> str:
    if match["file"] == "first_table.py":
        return "\n" + first_table.table().markdown() + "\n"
    path = ROOT / "docs" / "benchmarks" / match["file"]
    if not path.exists():
        return f"\nNot measured so far: there is no `{path.name}`.\n"
    if path.name == "demo-training.jsonl":
        return _dropping(path)
    if path.suffix == ".jsonl":
        rows = read_rows(path)
        return _chosen(suite.tables(rows), match, suite.made(rows))
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if "cells" in document:
        found = album.tables_of(document)
    elif "compressed" in document:
        found = [compressed.table(document)]
    elif "batches" in document:
        found = [batches.table(document)]
    elif "engines" in document:
        found = [engines.table(document)]
    elif "vllm" in document.get("settings", {}):
        found = vllm.tables(document)
    elif "serving" in document:
        found = [batching_table.table(document)]
    elif "accuracy" in document:
        found = [evaluate.table(document)]
    else:
        found = tables(document, detail=True)
    return _chosen(found, match, made_with(document))


def _chosen(found: list[Table], match: re.Match[str], made: str) -> str:
    """The tables whose titles begin as the comment says, and how they were made."""
    parts = []
    for title in match["titles"].split("; "):
        some = [table.markdown() for table in found if re.match(rf"{title}\b", table.title)]
        parts += some
        if not some:
            raise ValueError(f"{match['file']} has no table {title!r}")
    return "\n" + "\n".join([*parts, made + "\n"])


def main() -> int:
    """Write or check; the number of pages that differ."""
    check = "--check" in sys.argv
    changed = 0
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        before = page.read_text(encoding="utf-8")
        after = render(before)
        if after != before:
            changed += 1
            sys.stdout.write(f"{page.relative_to(ROOT)} {'differs' if check else 'rendered'}\n")
            if not check:
                page.write_text(after, encoding="utf-8")
    return changed if check else 0


if __name__ == "__main__":
    sys.exit(main())
