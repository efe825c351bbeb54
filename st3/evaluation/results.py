"""What the cells say together: scores with their intervals, and each method beside `none`."""

from __future__ import annotations

import bisect
import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from st3.evaluation.benchmarks import BENCHMARKS, published
from st3.evaluation.statistics import paired, score_interval
from st3.families.meta import meta_model
from st3.families.parts import find_parts
from st3.methods import Method, make_method
from st3.profiling.costs import Costs, costs_of
from st3.profiling.course import schedule_of
from st3.profiling.macs import MacCounter
from st3.profiling.shape import Workload
from st3.tables import NOT_MEASURED, Table

Row = dict[str, Any]
BASE = "none"
"""The method that every other is compared with; `stock` in its place where it was not asked for."""


@dataclass(frozen=True)
class Score:
    """What a task's own scoring says of some answers.

    Attributes:
        metric: the one that counts. `score`: of it, in the unit of papers.
        values: a figure a document, in the order of documents; None where the metric has none.
            `scale` times their mean is the score.
        metrics: all that the task computes, in its own units.
        unparsed: answers that the task could make nothing of; None where nobody counts them.
    """

    metric: str
    score: float
    values: tuple[float, ...] | None
    scale: float
    metrics: dict[str, Any]
    unparsed: int | None


class Unscored(ValueError):
    """A task that cannot score its answers, in one line."""


class Coster:
    """What a method costs on a cell's typical prompt, by arithmetic.

    Args:
        config: of the model.
        element: bytes of a number.
    """

    def __init__(self, config: Any, element: int) -> None:
        empty = meta_model(config)
        self._parts, self._counter, self._element = find_parts(empty), MacCounter(empty), element

    def ratios(self, method: Method | None, answers: Sequence[Row]) -> Row:
        """MACs of a prompt's prefill, and the shares of it and of the KV cache after it.

        Of a prompt of median length. How many of its tokens enter the decoder is read off what such
        prompts kept: it may hang on how many pictures they have, and on what these show.
        """
        good = [row for row in answers if "error" not in row]
        if not good or not statistics.median_low(row["visual_tokens"] for row in good):
            return {"prefill_macs": None, "prefill_macs_ratio": None, "kv_ratio": None}
        visual = statistics.median_low(row["visual_tokens"] for row in good)
        kept = statistics.median_low(
            row["kept_visual_tokens"] for row in good if row["visual_tokens"] == visual
        )
        text = statistics.median_low(row["prompt_tokens"] - row["visual_tokens"] for row in good)
        new = max(2, round(statistics.fmean(row["new_tokens"] for row in good)))
        work = Workload(visual, max(1, text), new)
        full = self._costs(make_method(BASE), work, visual)
        cost = full if method is None else self._costs(method, work, kept)
        return {
            "prefill_macs": cost.prefill_macs,
            "prefill_macs_ratio": cost.prefill_macs / full.prefill_macs,
            "kv_ratio": cost.kv_bytes[0] / full.kv_bytes[0],
        }

    def _costs(self, method: Method, work: Workload, kept: float) -> Costs:
        """Where so many visual tokens were kept, mean over layers."""
        schedule = schedule_of(method, self._parts, work)
        layers = range(1, len(self._counter.layers) + 1)

        def mean(entered: int) -> float:
            return statistics.fmean(schedule.inside.count(n, entered) for n in layers)

        # Rows tell it in hundredths.
        entered = 1 + bisect.bisect_left(range(1, work.visual), kept - 0.01, key=mean)
        schedule, kind = schedule.with_entered(entered), method.kv_cache_dtype
        return costs_of(self._counter, None, schedule, work, self._element, kind)


def make_row(
    model: str, task: str, method: str, asked: int, answers: Sequence[Row],
    score: Score | str | None, costs: Mapping[str, Any], cell: str,
) -> Row:  # fmt: skip
    """One cell's figures, but for what compares it with others.

    Args:
        asked: requests of the cell. `answers`: those that are finished.
        score: None while some are not; why there is none, where the task cannot tell it.
        costs: of `Coster.ratios`. `cell`: name of its file.
    """
    wrong, score = (score, None) if isinstance(score, str) else (None, score)
    known = published(model, task) if method in (BASE, "stock") else None
    good = [row for row in answers if "error" not in row]
    seconds, tokens = (sum(row[key] for row in good) for key in ("seconds", "new_tokens"))
    low = high = None
    if score is not None and score.values is not None:
        low, high = (score.scale * end for end in score_interval(score.values))
    benchmark = BENCHMARKS.get(task)
    return {
        "task": task, "title": benchmark.title if benchmark else task, "method": method,
        "metric": score.metric if score else benchmark.metric if benchmark else None,
        "score": score.score if score else None, "low": low, "high": high, "scoring_error": wrong,
        "asked": asked, "answered": len(answers), "errors": len(answers) - len(good),
        "unparsed": score.unparsed if score else None, **costs,
        "visual_tokens": _mean(good, "visual_tokens"),
        "kept_visual_tokens": _mean(good, "kept_visual_tokens"),
        "new_tokens": _mean(good, "new_tokens"),
        "tokens_per_second": tokens / seconds if seconds else None,
        "published": known.score if known else None,
        "published_source": known.source if known else None,
        "metrics": score.metrics if score else None, "cell": cell,
    }  # fmt: skip


def compare(rows: Sequence[Row], scores: Mapping[str, Score]) -> None:
    """Add to each row what it is beside the untrimmed one of its task: nothing where none is.

    Args:
        rows: of `make_row`, changed here.
        scores: cell -> what its row was made of.
    """
    for row in rows:
        row |= dict.fromkeys(_COMPARED)
        others = [one for one in rows if one["task"] == row["task"] and one["score"] is not None]
        base = next(
            (one for name in (BASE, "stock") for one in others if one["method"] == name), None
        )
        if base is None or row["score"] is None:
            continue
        row["compared_with"] = base["method"]
        if base["score"]:
            row["kept"] = row["score"] / base["score"]
        unit = scores[row["cell"]].scale
        mine, theirs = scores[row["cell"]].values, scores[base["cell"]].values
        if row is base or mine is None or theirs is None or len(mine) != len(theirs):
            continue
        found = paired(mine, theirs)
        row |= {
            "difference": unit * found.difference,
            "difference_low": unit * found.low, "difference_high": unit * found.high,
            "p": found.p, "test": found.test, "gained": found.gained, "lost": found.lost,
        }  # fmt: skip


_COMPARED = (
    "compared_with", "kept", "difference", "difference_low", "difference_high", "p", "test",
    "gained", "lost",
)  # fmt: skip


def tables(rows: Sequence[Row]) -> list[Table]:
    """One a task; columns that say nothing in any row are left out."""
    found = []
    for task in dict.fromkeys(row["task"] for row in rows):
        some = [row for row in rows if row["task"] == task]
        title = f"{some[0]['title']}: {some[0]['metric']}, {some[0]['asked']} requests"
        columns = {
            head: cell
            for head, (keys, cell) in _COLUMNS.items()
            if any(row[key] is not None for row in some for key in keys)
        }
        lines = tuple((row["method"], *(cell(row) for cell in columns.values())) for row in some)
        found.append(Table(title, ("method", *columns), lines))
    return found


def to_csv(rows: Sequence[Row]) -> str:
    """One line a cell; what is no single figure is left out."""
    keys = [key for key in rows[0] if key != "metrics"]
    text = io.StringIO()
    writer = csv.DictWriter(text, keys, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _mean(rows: Sequence[Row], key: str) -> float | None:
    return statistics.fmean(row[key] for row in rows) if rows else None


def _score(row: Row) -> str:
    if row["score"] is None:  # `scoring_error` says why, or Ctrl-C was pressed before
        whole = row["answered"] == row["asked"]
        return "not scored" if whole else f"{row['answered']} of {row['asked']} answered"
    return _figure(row["score"])


def _interval(row: Row) -> str:
    if row["score"] is None:
        return "-"
    if row["low"] is None:
        return NOT_MEASURED
    return f"{_figure(row['low'])} - {_figure(row['high'])}"


def _difference(row: Row) -> str:
    if row["difference"] is None:
        return "-"
    return f"{_figure(row['difference_low'], '+')} to {_figure(row['difference_high'], '+')}"


def _figure(value: float, sign: str = "") -> str:
    """In tenths; a task's own unit may ask for smaller ones."""
    return format(value, f"{sign}.1f" if abs(value) >= 10 else f"{sign}.3g")


def _percent(key: str) -> Any:
    return lambda row: "-" if row[key] is None else f"{row[key]:.1%}"


def _plain(key: str, form: str) -> Any:
    return lambda row: "-" if row[key] is None else format(row[key], form)


_COLUMNS: dict[str, tuple[tuple[str, ...], Any]] = {
    "score": (("asked",), _score),
    "95 % interval": (("score",), _interval),
    "of none's": (("kept",), _percent("kept")),
    "difference": (
        ("difference",),
        lambda row: "-" if row["difference"] is None else _figure(row["difference"], "+"),
    ),
    "its interval": (("difference",), _difference),
    "p": (("p",), _plain("p", ".2g")),
    "unparsed": (("unparsed",), _plain("unparsed", "d")),
    "errors": (("errors",), _plain("errors", "d")),
    "prefill MACs": (("prefill_macs_ratio",), _percent("prefill_macs_ratio")),
    "KV cache": (("kv_ratio",), _percent("kv_ratio")),
    "tokens/s": (("tokens_per_second",), _plain("tokens_per_second", ".3g")),
    "published": (("published",), _plain("published", ".1f")),
}
