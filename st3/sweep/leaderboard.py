"""Methods at equal tokens, best first: what is right, with its interval, against compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from st3.methods import make_method, split_spec
from st3.methods.composed import split
from st3.proportion import interval
from st3.sweep.results import Row, measured
from st3.tables import Table, digits

_SAME = 0.02  # of a budget: who leaves more or fewer tokens than this is shown with their number


def judged_by(document: Row) -> tuple[str, str]:
    """The key that decides, and its name: right answers where they are known, else equal ones."""
    labelled = document["baseline"]["accuracy"] is not None
    return ("accuracy", "right") if labelled else ("fidelity", "same")


def bounds(row: Row, key: str, questions: int) -> tuple[float, float]:
    """A share's 95 % interval over questions."""
    if key == "accuracy":
        return row["accuracy_low"], row["accuracy_high"]
    return interval(round(row[key] * questions), questions)


def board(rows: Sequence[Row]) -> dict[str, dict[int, Row]]:
    """Of each method its measured rows by budget; what differs beside the dial is a method."""
    found: dict[str, dict[int, Row]] = {}
    for row in rows:
        if row.get("budget_tokens") is not None:
            found.setdefault(asked(row["spec"]), {})[row["budget_tokens"]] = row
    good = measured(rows)
    return {
        name: {budget: row for budget, row in some.items() if row in good}
        for name, some in found.items()
    }


def leaderboard(document: Row) -> Table:
    """A line a method, best at the smallest budget first; `-` where it cannot be.

    Where a method can only be about there (`vtw` drops whole layers), `at` says how many tokens.
    """
    rows = board(document["cells"])
    budgets = sorted({b for row in document["cells"] if (b := row.get("budget_tokens"))})
    key, word = judged_by(document)
    questions = document["baseline"]["questions"]

    def rank(name: str) -> tuple[Any, ...]:
        return tuple(-rows[name][b][key] if b in rows[name] else 1.0 for b in budgets)

    lines = []
    for name in sorted(rows, key=rank):
        cells: list[str] = []
        for budget in budgets:
            row = rows[name].get(budget)
            if row is None:
                cells += ["-", "-", "-"]
                continue
            low, high = bounds(row, key, questions)
            share = f"{100 * row[key]:.1f} ({100 * low:.0f}-{100 * high:.0f})"
            tokens = row["mean_keep"] * document["baseline"]["visual_tokens"]
            if abs(tokens / budget - 1) > _SAME:
                share += f" at {tokens:.0f}"
            cells += [
                share,
                digits(1000 * row["kl"], 3),
                f"{100 * row['prefill_macs_ratio']:.1f}",
            ]
        lines.append((name, *cells))
    heads = [
        head for budget in budgets for head in (f"{budget}: {word} % (95 %)", "KL mnat", "MACs %")
    ]
    base = document["baseline"]
    title = f"Leaderboard of {document['settings']['model']}, {questions} questions"
    if base["accuracy"] is not None:
        title += f", untrimmed accuracy {base['accuracy']:.1%}"
    return Table(title, ("method", *heads), tuple(lines))


def asked(spec: str) -> str:
    """The method as it was asked for, without its dial, or the setting in its place."""
    dial = make_method(spec).dial
    *before, last = split(spec)
    name, rest = split_spec(last)
    gone = "" if dial is None else dial.parameter + "="
    kept = [x for x in rest.split(",") if not (x.startswith(gone) if gone else x.isdecimal())]
    return "+".join([*before, name + (":" + ",".join(kept) if any(kept) else "")])
