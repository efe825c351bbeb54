"""What a sweep's cells say together: the Pareto front, the best in each column, a budget."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from typing import Any

from st3.tables import Table, digits

Row = dict[str, Any]

BUDGETS = {
    "fidelity": "fidelity",
    "accuracy": "accuracy",
    "kv": "kv_ratio",
    "macs": "prefill_macs_ratio",
    "agreement": "token_agreement",
    "kl": "kl",
}
"""What a budget may bound -> the key in a row."""
_LESS_IS_BETTER = {
    "prefill_macs_ratio", "kv_ratio", "kv_mean_ratio", "ttft_ms", "tpot_ms", "kl",
}  # fmt: skip


def measured(rows: Sequence[Row]) -> list[Row]:
    """Rows with results: neither impossible nor the same as another."""
    return [row for row in rows if "fidelity" in row and "same_as" not in row]


def pareto(rows: Sequence[Row]) -> list[str]:
    """Specs of the cells that no other beats in both MACs and fidelity, cheapest first."""
    front: list[str] = []
    best = -1.0
    for row in sorted(measured(rows), key=lambda r: (r["prefill_macs_ratio"], -r["fidelity"])):
        if row["fidelity"] > best:
            front.append(row["spec"])
            best = row["fidelity"]
    return front


def parse_budget(text: str) -> list[tuple[str, str, float]]:
    """`fidelity>=0.99,kv<=40%` -> [(key, operator, bound)].

    Raises:
        ValueError: not so written, or an unknown name.
    """
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\w+)\s*(>=|<=)\s*([\d.]+)(%?)\s*", part)
        if match is None:
            raise ValueError(f"budget {part.strip()!r}: write it as fidelity>=0.99 or kv<=40%")
        name, operator, number, percent = match.groups()
        if name not in BUDGETS:
            raise ValueError(f"budget: unknown {name!r}; known: {', '.join(BUDGETS)}")
        try:
            bound = float(number) / (100 if percent else 1)
        except ValueError:
            raise ValueError(f"budget {part.strip()!r}: {number!r} is no number") from None
        found.append((BUDGETS[name], operator, bound))
    return found


def within(rows: Sequence[Row], budget: Sequence[tuple[str, str, float]]) -> Row | None:
    """The fastest measured cell that holds to the budget, or None; MACs decide a draw."""

    def holds(row: Row) -> bool:
        return all(
            row[key] is not None and (row[key] >= bound if operator == ">=" else row[key] <= bound)
            for key, operator, bound in budget
        )

    fitting = [row for row in measured(rows) if holds(row)]
    return min(fitting, key=lambda row: (row["answer_ms"], row["prefill_macs_ratio"]), default=None)


def table(document: Row) -> Table:
    """All cells; the best of each column has a star, and those on the Pareto front a plus."""
    rows, front = document["cells"], set(document["pareto"])
    best = {key: _best(measured(rows), key) for key in _COLUMNS.values()}
    taus = len({row["tau"] for row in rows if row["stride"] is not None}) > 1
    lines = []
    for row in rows:
        name = _name(row, taus) + (" +" if row["spec"] in front else "")
        if "problem" in row:
            c = "< 0" if row["final_keep"] < 0 else _percent(row["final_keep"])
            lines.append((name, c, *["-"] * len(_COLUMNS)))
        else:
            cells = [_show(key, row, best[key]) for key in _COLUMNS.values()]
            lines.append((name, _percent(row["final_keep"]), *cells))
    base = document["baseline"]
    title = f"Sweep of {document['settings']['model']}, {base['questions']} questions"
    if base["accuracy"] is not None:
        title += f", untrimmed accuracy {base['accuracy']:.1%}"
    return Table(title, ("setting", "C %", *_COLUMNS), tuple(lines))


def impossible(rows: Sequence[Row]) -> list[str]:
    """Why cells cannot be: one sentence for all with C < 0, with the R that would fit; others."""
    too_much = {row["stride"]: row for row in rows if row["final_keep"] < 0}
    found = []
    if too_much:
        largest = ", ".join(f"{row['largest_ratio']:g} for S={s}" for s, row in too_much.items())
        found.append(f"C < 0 cannot be: more would go than there is. The largest R is {largest}.")
    others = (row["problem"] for row in rows if "problem" in row and row["final_keep"] >= 0)
    return [*found, *dict.fromkeys(f"Cannot be: {problem}." for problem in others)]


def _name(row: Row, taus: bool) -> str:
    if row["stride"] is None:
        return str(row["spec"])
    name = f"S={row['stride']}"
    name += f" R={row['ratio']:.3g}" if row["ratio"] is not None else ""
    return name + (f" tau={row['tau'] or 'none'}" if taus else "")


def to_csv(rows: Sequence[Row]) -> str:
    """One line a cell."""
    keys = list(dict.fromkeys(key for row in rows for key in row if key not in _NOT_FIGURES))
    text = io.StringIO()
    writer = csv.DictWriter(text, keys, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


_NOT_FIGURES = {"differences", "same_each", "right_each", "beside"}
_COLUMNS = {
    "MACs %": "prefill_macs_ratio",
    "KV %": "kv_ratio",
    "TTFT ms": "ttft_ms",
    "TPOT ms": "tpot_ms",
    "same %": "fidelity",
    "KL mnat": "kl",
    "right %": "accuracy",
}


def _best(rows: Sequence[Row], key: str) -> float | None:
    """The best value of a column, unless every cell has it."""
    values: list[float] = [row[key] for row in rows if row[key] is not None]
    if len(set(values)) < 2:
        return None
    return min(values) if key in _LESS_IS_BETTER else max(values)


def _show(key: str, row: Row, best: float | None) -> str:
    value = row[key]
    if value is None:
        return "-"
    if key == "kl":
        text = digits(1000 * value, 3)
    else:
        text = f"{value:.1f}" if key.endswith("_ms") else _percent(value)
    return text + ("*" if value == best else "")


def _percent(value: float) -> str:
    return f"{100 * value:.1f}" if value < 1 else "100"
