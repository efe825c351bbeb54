"""One method of a sweep beside the others, question by question: won, lost, and by how much.

Intervals of two shares may overlap although one method is better on the very same questions; these
pairs say so. A comparison is made at the same budget, where there are budgets.
"""

from __future__ import annotations

from collections.abc import Sequence

from st3.proportion import difference_interval, mcnemar
from st3.sweep.leaderboard import asked, judged_by
from st3.sweep.results import Row, measured
from st3.tables import Table

_SURE = 0.05


def named(spec: str, budget: int | None) -> str:
    """What a cell is called as somebody's pair: at a budget without what the dial was turned to."""
    return spec if budget is None else asked(spec)


def pair(document: Row, beside: str) -> None:
    """Put `beside` into each measured row: a dictionary, None in the rows of that method itself.

    Its keys: `won` and `lost`, questions on which only this row, or only that method, is right
    (where no answers are known: answers as untrimmed); `difference` of the shares with its 95 %
    interval, `low` and `high`; `p` of McNemar's exact test, and `p_holm`, the same for all
    comparisons of the document together (Holm, 1979).

    Args:
        document: a sweep's; changed in place.
        beside: a method as it was asked for.

    Raises:
        ValueError: a row without each question's outcome, of an older version.
    """
    document["beside"] = beside
    key = _each(document)
    rows = measured(document["cells"])
    other = {
        row.get("budget_tokens"): row
        for row in rows
        if named(row["spec"], row.get("budget_tokens")) == beside
    }
    found = []
    for row in rows:
        one, its = row, other.get(row.get("budget_tokens"))
        row["beside"] = None
        if its is None or its is one:
            continue
        if not one.get(key) or len(one[key]) != len(its.get(key) or ""):
            raise ValueError(
                f"the cell {row['spec']} does not say how each question went, for another version "
                "of st3 ran it: give another --output"
            )
        row["beside"] = compared(one[key], its[key])
        found.append(row["beside"])
    for each, p in zip(found, holm([each["p"] for each in found]), strict=True):
        each["p_holm"] = p


def compared(one: str, other: str) -> dict[str, float]:
    """Two methods' outcomes on the same questions, 1 or 0 for each: see `pair`."""
    both, won, lost, neither = (
        sum((a, b) == kind for a, b in zip(one, other, strict=True))
        for kind in (("1", "1"), ("1", "0"), ("0", "1"), ("0", "0"))
    )
    low, high = difference_interval(both, won, lost, neither)
    return {
        "won": won, "lost": lost, "difference": (won - lost) / len(one), "low": low, "high": high,
        "p": mcnemar(won, lost),
    }  # fmt: skip


def holm(values: Sequence[float]) -> list[float]:
    """Of p values that are looked at together, each as it is then (Holm, 1979)."""
    found, least = [1.0] * len(values), 0.0
    for number, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        least = max(least, min(1.0, (len(values) - number) * values[place]))
        found[place] = least
    return found


def table(document: Row) -> Table:
    """A line a method (a cell, where there are no budgets), most won first."""
    lines: dict[str, dict[int | None, Row]] = {}
    for row in measured(document["cells"]):
        if row.get("beside"):
            budget = row.get("budget_tokens")
            lines.setdefault(named(row["spec"], budget), {})[budget] = row["beside"]
    budgets = sorted({b for line in lines.values() for b in line}, key=lambda b: b or 0)
    _, word = judged_by(document)

    def rank(name: str) -> tuple[float, ...]:
        return tuple(-lines[name][b]["difference"] if b in lines[name] else 2.0 for b in budgets)

    heads = [
        ("" if budget is None else f"{budget}: ") + head
        for budget in budgets
        for head in ("won : lost", f"more {word}, points (95 %)", "p")
    ]
    rows = tuple(
        (name, *(cell for budget in budgets for cell in _cells(lines[name].get(budget))))
        for name in sorted(lines, key=rank)
    )
    title = f"Pairs of {document['settings']['model']} beside {document['beside']}"
    return Table(
        f"{title}, {document['baseline']['questions']} questions", ("method", *heads), rows
    )


def _cells(found: Row | None) -> tuple[str, str, str]:
    """Of one comparison; a star: sure among all of them."""
    if found is None:
        return ("-", "-", "-")
    sure = "*" if found["p_holm"] < _SURE else ""
    difference, low, high = (100 * found[key] for key in ("difference", "low", "high"))
    return (
        f"{found['won']} : {found['lost']}",
        f"{difference:+.1f} ({low:+.0f} to {high:+.0f}){sure}",
        f"{found['p']:.2g}",
    )


def _each(document: Row) -> str:
    return "right_each" if judged_by(document)[0] == "accuracy" else "same_each"
