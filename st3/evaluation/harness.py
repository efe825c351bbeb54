"""lmms-eval's official tasks: opened, checked, and asked to score answers that are there already.

Nothing of a task is changed. Their scoring is called as lmms-eval calls it, with a model that
repeats what was answered; and always in one process, because some tasks draw at random, each
process in its own way, where they can make nothing of an answer.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import hashlib
import json
import logging
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
from lmms_eval import evaluator
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from lmms_eval.tasks import TaskManager, get_task_dict
from loguru import logger

from st3.evaluation import checks
from st3.evaluation.hush import hushed
from st3.evaluation.judges import asks_judge, needs_java
from st3.evaluation.requests import Requests
from st3.evaluation.results import Row, Score, Unscored
from st3.evaluation.scoring import score_of, watched

_SEED = 1234  # lmms-eval's own
_RANKING = ("loglikelihood", "multiple_choice")


class UnknownTask(ValueError):
    """A name that no task has, or a kind of task that cannot be asked."""


class Exam(Requests):
    """A task of lmms-eval.

    Args:
        name: of the task. `task`: lmms-eval's.
        limit: first documents only; None: all.
    """

    def __init__(self, name: str, task: Any, limit: int | None) -> None:
        self.task, self.limit = task, limit
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=_SEED)
        task.build_all_requests(limit=limit, rank=0, world_size=1)
        kinds = {instance.request_type for instance in task.instances}
        if not kinds <= {"generate_until"} and not kinds <= {"loglikelihood"}:
            raise UnknownTask(f"{name} asks for {', '.join(sorted(kinds))}, which st3 does not do")
        super().__init__(task.instances, {task.config.task: task.dataset})
        self.name = name
        split = task.config.test_split or task.config.validation_split
        self.settings = {
            "name": name,
            "version": str(task.VERSION),
            "data": [
                task.DATASET_PATH,
                task.DATASET_NAME,
                split,
                _fingerprint(task.dataset[split]),
            ],
            "prompt": task.lmms_eval_specific_kwargs,
            "tokens": self.tokens,
            "kind": task.OUTPUT_TYPE,
        }

    def score(self, answers: Sequence[Row], folder: Path) -> Score:
        """What the task makes of all its answers, in order.

        Args:
            folder: for files that the task writes.

        Raises:
            Unscored: it fails.
        """
        said = [
            GenerationResult(
                (float("inf"), False) if "error" in row else (row["loss"], row["greedy"]), None
            )
            if self.weighing
            else GenerationResult(self.cut(row.get("answer") or ""), None)
            for row in answers
        ]
        folder = folder.resolve()
        how = argparse.Namespace(output_path=str(folder), process_with_media=False)
        try:
            with hushed(), _alone(), contextlib.chdir(folder), watched(self.name) as seen:
                random.seed(_SEED)
                found = evaluator.evaluate(
                    lm=_Replay(said), task_dict={self.name: self.task}, limit=self.limit,
                    bootstrap_iters=0, log_samples=True, verbosity="ERROR", cli_args=how,
                    process_docs_parallel=1,  # draws at random come in their order
                )  # fmt: skip
                samples = sorted(found["samples"][self.name], key=lambda one: one["doc_id"])
                return score_of(self.name, self.task, found["results"][self.name], samples, seen)
        except Exception as error:  # tasks raise what they like
            raise Unscored(
                f"the task cannot score its answers ({_line(error)}); they are all there, and the "
                "same command tries again"
            ) from error


class _Replay(lmms):  # type: ignore[misc]
    """Says what was said."""

    is_simple = False

    def __init__(self, said: Sequence[GenerationResult]) -> None:
        super().__init__()
        self.said, self.accelerator = said, None

    def _repeat(self, requests: list[Instance]) -> list[GenerationResult]:
        places = {id(one): n for n, one in enumerate({id(one): one for one in requests}.values())}
        return [self.said[places[id(one)]] for one in requests]

    generate_until = loglikelihood = generate_until_multi_round = _repeat


def open_exams(names: Sequence[str], limit: int | None, *, judge: bool) -> list[Exam]:
    """Tasks with their data; of groups all tasks in them.

    Args:
        names: of lmms-eval.
        limit: first documents of each; None: all.
        judge: whether scores may cost money.

    Raises:
        UnknownTask: no such task, or one that cannot be asked.
        NotReady: Java or a login is missing, or a score costs money.
        ValueError: its data are not there, or not as the task expects them.
    """
    _be_quiet()
    with hushed():
        manager = TaskManager("ERROR", model_name="st3")
    for name in names:
        if name not in manager.all_tasks:
            close = difflib.get_close_matches(name, manager.all_tasks, 1, cutoff=0.5)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise UnknownTask(f"lmms-eval has no task {name!r}{hint}")
    exams: dict[str, Exam] = {}
    for name in names:
        found = _tasks(name, manager, "chat")
        if any(task.OUTPUT_TYPE in _RANKING for task in found.values()):  # which have no messages
            found |= {
                leaf: task
                for leaf, task in _tasks(name, manager, "simple").items()
                if task.OUTPUT_TYPE in _RANKING
            }
        for leaf, task in found.items():
            if asks_judge(task) and not judge:
                raise checks.NotReady(_paid(leaf))
            checks.check_java([leaf] if needs_java(task) else [])
            exams[leaf] = _opened(leaf, task, limit)
    return list(exams.values())


def _tasks(name: str, manager: Any, kind: str) -> dict[str, Any]:
    """Name -> task: `chat` ones say where pictures stand, `simple` ones what is shown."""
    try:
        with hushed():
            found = get_task_dict([name], manager, kind)
    except Exception as error:
        if "api_key" in str(error).lower():  # its code wants a key while it is imported
            raise checks.NotReady(_paid(name)) from error
        raise ValueError(f"{name}: {_missing(error)}") from error
    leaves: dict[str, Any] = {}

    def walk(tree: Any) -> None:
        for key, value in tree.items():
            if isinstance(value, dict):
                walk(value)
            else:
                leaves[str(key)] = value

    walk(found)
    return leaves


def _opened(name: str, task: Any, limit: int | None) -> Exam:
    try:
        with hushed():
            exam = Exam(name, task, limit)
            exam.question(0)
            return exam
    except UnknownTask:
        raise
    except Exception as error:
        raise ValueError(f"{name}: {_changed(error)}") from error


def _paid(name: str) -> str:
    return (
        f"{name} is scored by a model that is paid by the answer: give --judge, and in the "
        "environment the key that its code asks for, or take a task that is not"
    )


def _missing(error: BaseException) -> str:
    """Why a task does not open: its data are not there, or are others."""
    attempt = getattr(error, "last_attempt", None)  # it was tried several times
    cause = error if attempt is None else attempt.exception() or error
    if isinstance(cause, (KeyError, AttributeError, IndexError, TypeError)):
        return _changed(cause)
    return (
        f"its data set does not open ({_line(cause)}): see that the Hub can be reached, or that "
        "the data set is in its cache or in the working folder"
    )


def _changed(error: BaseException) -> str:
    return (
        f"its data set is not as the task expects it ({type(error).__name__}: {_line(error)}): it "
        "has changed since this version of lmms-eval, so take another version, or the data set's "
        "older revision"
    )


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _fingerprint(data: Any) -> str:
    """Of all documents, pictures included, whatever file or cache they come from."""
    digest = hashlib.sha256()
    raw = data
    for name, feature in data.features.items():
        if isinstance(feature, datasets.Image):
            raw = raw.cast_column(name, datasets.Image(decode=False))
    for document in raw.with_format("arrow").iter(256):
        for name in sorted(document.column_names):
            for value in document.column(name).to_pylist():
                _feed(digest, value)
    return digest.hexdigest()[:16]


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, bytes):
        digest.update(b"b%d:" % len(value))
        digest.update(value)
    elif isinstance(value, dict):
        for key in sorted(value):
            if key != "path":  # where the picture lay
                digest.update(key.encode())
                _feed(digest, value[key])
    elif isinstance(value, (list, tuple)):
        digest.update(b"l%d:" % len(value))
        for each in value:
            _feed(digest, each)
    else:
        digest.update(json.dumps(value, default=str).encode())


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """lmms-eval reads from the environment how many processes there are."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


def _be_quiet() -> None:
    logger.remove()
    for name in ("lmms-eval", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    datasets.disable_progress_bars()
