"""What a task computes becomes a score: the metric that counts, a figure a document, the unparsed.

lmms-eval tells a metric of all documents together. A figure a document is what intervals and paired
tests need, so it is taken from where it arises, and kept only if the mean of all is the metric.
"""

from __future__ import annotations

import importlib
import inspect
import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from st3.evaluation.benchmarks import BENCHMARKS
from st3.evaluation.results import Score

_GROUP = 1_000_000  # of MMBench: the same question with its options turned has this much more


@dataclass
class Seen:
    """What was noticed while a task scored.

    Attributes:
        drawn: answers in whose place the task drew one at random.
        captions: of the last CIDEr that was computed, a figure a picture.
    """

    drawn: int = 0
    captions: list[float] = field(default_factory=list)


@contextmanager
def watched(name: str) -> Iterator[Seen]:
    """Notice draws at random, and CIDEr's figures for each picture."""
    seen, choice = Seen(), random.choice

    def drawing(options: Any) -> Any:
        seen.drawn += 1
        return choice(options)

    cider: Any = None
    with suppress(ImportError):
        cider = importlib.import_module("pycocoevalcap.cider.cider").Cider
    compute: Any = None if cider is None else cider.compute_score

    def computing(self: Any, gts: Any, res: Any) -> Any:
        score, scores = compute(self, gts, res)
        seen.captions = [float(one) for one in scores]
        return score, scores

    random.choice = drawing  # type: ignore[assignment]
    if cider is not None:
        cider.compute_score = computing
    try:
        yield seen
    finally:
        random.choice = choice
        if cider is not None:
            cider.compute_score = compute


def score_of(name: str, task: Any, results: Any, samples: Sequence[Any], seen: Seen) -> Score:
    """The score of a task from lmms-eval's results.

    Args:
        name: of the task. `task`: lmms-eval's. `results`: of it. `samples`: documents, in order.

    Raises:
        ValueError: a document that the task could not score, or no metric.
    """
    metrics = {
        key.partition(",")[0]: value
        for key, value in results.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and "stderr" not in key
    }
    benchmark = BENCHMARKS.get(name)
    metric = benchmark.metric if benchmark else next(iter(metrics), None)
    if metric not in metrics:
        raise ValueError(f"it tells no {metric or 'metric'}, but {', '.join(metrics) or 'nothing'}")
    assert metric is not None
    told = [one for one in samples if metric in one]
    # Of others than these, such as MME, a metric may be of one kind of documents alone.
    if benchmark is not None and len(told) < len(samples):
        lacking = next(one["doc_id"] for one in samples if metric not in one)
        raise ValueError(f"document {lacking} was not scored")
    total, unit = float(metrics[metric]), benchmark.unit if benchmark else 1.0
    items = [one[metric] for one in told]
    values, scale = _values(task, metric, items, total, seen)
    if values is not None and unit * scale != 100 and set(values) <= {0.0, 100.0}:
        values, scale = [value / 100 for value in values], 100 * scale
    return Score(
        metric=metric,
        score=unit * total,
        values=None if values is None else tuple(values),
        scale=unit * scale,
        metrics=metrics,
        unparsed=_unparsed(name, told, items, seen),
    )


def _values(
    task: Any, metric: str, items: Sequence[Any], total: float, seen: Seen
) -> tuple[list[float] | None, float]:
    """Figures whose mean is the total; None where none are found."""

    def fits(values: Sequence[float]) -> bool:
        mean = sum(values) / len(values) if values else math.nan
        return math.isclose(mean, total, rel_tol=1e-4, abs_tol=1e-5)

    if all(isinstance(item, (int, float)) for item in items):
        values = [float(item) for item in items]
        return (values, 1.0) if fits(values) else (None, 1.0)
    if "CIDEr" in metric:
        return (seen.captions, 1.0) if fits(seen.captions) else (None, 1.0)
    aggregate = task.aggregation().get(metric)
    for grouping in (_alone, _turned):
        try:
            values = [_aggregated(task, aggregate, group) for group in grouping(items)]
        except Exception:  # it takes no few documents
            continue
        if fits(values):
            return values, 1.0
    return None, 1.0


def _aggregated(task: Any, aggregate: Callable[..., Any], items: list[Any]) -> float:
    more = {"args": task.args} if "args" in inspect.signature(aggregate).parameters else {}
    return float(aggregate(items, **more))


def _alone(items: Sequence[Any]) -> list[list[Any]]:
    return [[item] for item in items]


def _turned(items: Sequence[Any]) -> list[list[Any]]:
    """Those of one question together, that is right if all of them are."""
    groups: dict[int, list[Any]] = {}
    for item in items:
        groups.setdefault(int(item["index"]) % _GROUP, []).append(item)
    return list(groups.values())


def _unparsed(name: str, samples: Sequence[Any], items: Sequence[Any], seen: Seen) -> int | None:
    """Answers that a task can make nothing of, where we know how it reads them."""
    if name.startswith("mmmu"):
        return seen.drawn
    if name.startswith("scienceqa"):
        said = [str(one["filtered_resps"][0]).strip() for one in samples]
        return sum(not re.match(r"[A-Z]($|\.)", text) for text in said)
    if name.startswith("mmbench"):
        with suppress(Exception):
            from lmms_eval.tasks.mmbench.en_utils import mmbench_evaluator

            return sum(not mmbench_evaluator.prefetch_answer(dict(item)) for item in items)
    return None
