"""Two folders of results side by side: two machines, or two versions on one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from st3.benchmark.run import ROWS, named
from st3.benchmark.tables import made, rounds, title_of, work
from st3.files import make_folder, read_rows, write_text
from st3.plots.benchmark import Bars, save_bars
from st3.plots.page import page, paragraph, pictured, table_of
from st3.tables import Table, digits, spread

_FIGURES = ("ttft_ms", "tpot_ms", "e2e_ms")
_EXPLAINED = (
    "Factors say how many times as fast B is as A, of medians. Beyond the spread: whether the "
    "slowest round of one was faster than the fastest of the other; where it was not, the "
    "difference may be noise."
)


@dataclass(frozen=True)
class Side:
    """One folder.

    Attributes:
        folder: it.
        rows: all of its rows.
        machine, settings: of its last start.
    """

    folder: Path
    rows: list[dict[str, Any]]
    machine: dict[str, Any]
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """Machine, versions and commit."""
        told = ", ".join(
            f"{what} {self.machine[what]}" for what in ("torch", "transformers")
            if what in self.machine
        )  # fmt: skip
        return f"{named(self.machine)}, {told}, st3 at commit {self.settings.get('commit')}"

    def found(self) -> dict[tuple[Any, ...], dict[str, Any]]:
        """What was timed, by what was asked for; of several starts the last."""
        return {
            _key(row): row for row in self.rows
            if row.get("e2e_ms") is not None and "interrupted" not in row
        }  # fmt: skip

    def verdicts(self) -> dict[tuple[str, str, str], str]:
        """Model, method and dtype -> what the oracle says."""
        return {
            (row["model"], row["method"], row["dtype"]): row["verdict"]
            for row in self.rows
            if "verdict" in row
        }


def read_side(folder: Path) -> Side:
    """Read a folder of results.

    Raises:
        ValueError: none are there, or a line is broken.
    """
    rows = read_rows(folder / ROWS)
    starts = [row for row in rows if "start" in row and row.get("machine")]
    if not starts:
        raise ValueError(
            f"{folder} holds no results of st3 benchmark (no {ROWS} with a start): give a folder "
            "that its --output named"
        )
    return Side(folder, rows, starts[-1]["machine"], starts[-1]["settings"])


@dataclass(frozen=True)
class Comparison:
    """Both sides.

    Attributes:
        a, b: the folders.
        pairs: rows that both have.
        only: cells that one of them has alone, by "a" and "b".
        changed: verdicts that differ: model, method, dtype -> of a, of b.
    """

    a: Side
    b: Side
    pairs: tuple[tuple[dict[str, Any], dict[str, Any]], ...]
    only: dict[str, list[str]]
    changed: dict[tuple[str, str, str], tuple[str, str]]

    def tables(self) -> list[Table]:
        """A table a kind of cell; and verdicts that differ."""
        found = []
        heads = (
            "method", "of", "A, ms", "B, ms", "end to end", "TTFT", "TPOT", "beyond the spread",
        )  # fmt: skip
        kinds = dict.fromkeys(_kind(row) for row, _ in self.pairs)
        for kind in kinds:
            lines = tuple(
                (a["method"], _of(a), *(digits(row["e2e_ms"]) for row in (a, b)),
                 *(_times(factor(a, b, key)) for key in ("e2e_ms", "ttft_ms", "tpot_ms")),
                 _yes(apart(a, b)))
                for a, b in self.pairs if _kind(a) == kind
            )  # fmt: skip
            found.append(Table(f"{title_of(kind)}: B beside A", heads, lines))
        if self.changed:
            lines = tuple((*key, *pair) for key, pair in self.changed.items())
            names = ("model", "method", "dtype", "A", "B")
            found.append(Table("Verdicts that differ", names, lines))
        return found

    def sentences(self) -> list[str]:
        """Which is which, and how to read it."""
        found = [f"A: {self.a.name}.", f"B: {self.b.name}.", _EXPLAINED]
        for side, cells in self.only.items():
            if cells:
                found.append(f"In {side.upper()} alone: {', '.join(cells)}.")
        return found

    def document(self) -> dict[str, Any]:
        """For JSON."""
        sides = {
            name: {"folder": str(side.folder), "machine": side.machine, "settings": side.settings}
            for name, side in (("a", self.a), ("b", self.b))
        }
        rows = [
            {key: a[key] for key in (
                "cell", "model", "dtype", "method", "visual_tokens", "new_tokens", "batch_size",
            )}
            | {key: [a.get(key), b.get(key)] for key in _FIGURES}
            | {"speedup": factor(a, b, "e2e_ms"), "beyond_spread": apart(a, b)}
            for a, b in self.pairs
        ]  # fmt: skip
        changed = [
            dict(zip(("model", "method", "dtype", "a", "b"), (*key, *pair), strict=True))
            for key, pair in self.changed.items()
        ]
        return {**sides, "rows": rows, "only": self.only, "verdicts_changed": changed}

    def markdown(self) -> str:
        """Tables, and below them how to read them."""
        parts = [table.markdown() for table in self.tables()]
        return "\n".join([*parts, *(f"{line}\n" for line in self.sentences())])

    def save(self, folder: Path) -> list[str]:
        """Write Markdown, a picture and a page; the names of the files, the page first."""
        make_folder(folder)
        title = "Two runs of st3 benchmark"
        what = "times A's speed, end to end"
        save_bars(folder / "compare.png", self._panels(), what, f"{title}: B / A")
        write_text(folder / "compare.md", self.markdown())
        parts = [paragraph(line) for line in self.sentences()]
        shown = "How many times as fast B is as A; the bars' ends show both spreads."
        parts.append(pictured(folder / "compare.png", shown))
        parts += [table_of(table) for table in self.tables()]
        sources = f"A: {made(self.a.rows)} B: {made(self.b.rows)}"
        write_text(folder / "compare.html", page(title, title, parts, sources))
        return ["compare.html", "compare.md", "compare.png"]

    def _panels(self) -> dict[str, Bars]:
        found: dict[str, list[tuple[str, float | None, float | None]]] = {}
        for a, b in self.pairs:
            ratio, mine, other = factor(a, b, "e2e_ms"), spread(rounds(a)), spread(rounds(b))
            half = None
            if ratio is not None and mine is not None and other is not None:
                half = ratio * (mine + other) / 2
            title = f"{title_of(_kind(a))}\n{a['model']}, {a['dtype']}\n{work(a)}"
            found.setdefault(title, []).append((a["method"], ratio, half))
        return dict(found)


def compare(first: Path, second: Path) -> Comparison:
    """Pair what both folders have.

    Raises:
        ValueError: a folder without results, or two that share no figure.
    """
    a, b = read_side(first), read_side(second)
    ours, theirs = a.found(), b.found()
    shared = [key for key in ours if key in theirs]
    if not shared:
        raise ValueError(
            f"{first} and {second} share no figure: of one cell, dtype and shape; run the same "
            "suite in both (--suite, --dtype, --cells)"
        )
    only = {
        "a": sorted({ours[key]["cell"] for key in ours if key not in theirs}),
        "b": sorted({theirs[key]["cell"] for key in theirs if key not in ours}),
    }
    said, other = a.verdicts(), b.verdicts()
    changed = {
        key: (said[key], other[key]) for key in said if key in other and said[key] != other[key]
    }
    return Comparison(a, b, tuple((ours[k], theirs[k]) for k in shared), only, changed)


def factor(a: dict[str, Any], b: dict[str, Any], key: str) -> float | None:
    """How many times as fast B is."""
    return a[key] / b[key] if a.get(key) and b.get(key) else None


def apart(a: dict[str, Any], b: dict[str, Any]) -> bool | None:
    """Whether no round of one is among those of the other; None where either had one round."""
    left, right = rounds(a), rounds(b)
    if min(len(left), len(right)) < 2:
        return None
    return bool(max(left) < min(right) or max(right) < min(left))


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    names = ("cell", "model", "dtype", "method", "visual_tokens", "new_tokens", "batch_size")
    return tuple(row.get(name) for name in names)


def _kind(row: dict[str, Any]) -> str:
    return str(row["cell"]).partition("/")[0]


def _of(row: dict[str, Any]) -> str:
    return f"{row['model']}, {work(row)}, {row['dtype']}"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"


def _yes(value: bool | None) -> str:
    return "-" if value is None else "yes" if value else "no"
