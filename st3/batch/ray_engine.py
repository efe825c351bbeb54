"""The same on a Ray cluster (`pip install "st3[ray]"`).

Ray Data makes pictures ready and hands them to actors, each of which holds the model; the process
that asked for it alone writes.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from st3.batch.answering import WAITING_BYTES, answer_prepared, make_asker
from st3.batch.asking import Course
from st3.batch.memory import MOST
from st3.batch.preparing import Preparer
from st3.batch.row import Result, Row
from st3.families.meta import meta_model
from st3.inference.checkpoints import find
from st3.inference.configs import load_config
from st3.inference.fitting import room_of
from st3.inference.loading import load
from st3.inference.processors import load_processor
from st3.methods import Method

_READY = 32  # rows that are made ready together
_BATCHES = 2  # of the largest ones that an actor is handed at a time
_ANSWERING = ("max_new_tokens", "batch_size", "cuda_graphs", "compile")

Columns = Mapping[str, Any]


def check_ray() -> Any:
    """Ray.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise ValueError('--engine ray needs Ray: pip install "st3[ray]"') from None
    return ray


def ray_batches(
    rows: Sequence[Row],
    loading: dict[str, Any],
    method: Method | None,
    options: Mapping[str, Any],
    course: Course,
    *,
    address: str | None = None,
    actors: int | None = None,
) -> Generator[list[Result], None, None]:
    """Results as actors finish them.

    Args:
        rows: to be answered; paths in them must lead to the pictures on every machine.
        loading: arguments of `st3.load`, which every actor calls.
        method: how to trim.
        options: as of `st3.answer_all`.
        course: is kept up to date, over all actors.
        address: of a cluster; None starts one on this machine.
        actors: how many hold the model; None: one a GPU, or one.

    Raises:
        ValueError: Ray is not installed, or the cluster cannot be reached or lacks GPUs.
    """
    ray = check_ray()
    source = find(loading["name"])
    config = load_config(source)
    processor = load_processor(source, config)
    room = room_of(meta_model(config))
    preparer = Preparer(processor, room, options["frames"], options["fps"])
    asking = {name: options[name] for name in _ANSWERING}
    with _cluster(ray, address):
        gpus = int(ray.cluster_resources().get("GPU", 0)) if loading["device"] != "cpu" else 0
        if loading["device"] == "cuda" and not gpus:
            raise ValueError("this Ray cluster has no GPU: leave --device out")
        many = actors or gpus or 1
        most = options["batch_size"] or MOST["cuda" if gpus else "cpu"]
        chunk = chunk_of(rows, preparer, most, many)
        ready = min(_READY, chunk)
        data = ray.data.from_items(
            [{"row": pickle.dumps(row)} for row in rows],
            override_num_blocks=-(-len(rows) // ready),
        )
        data = data.map_batches(_ready(preparer), batch_size=ready)
        data = data.map_batches(
            Actor, batch_size=chunk, num_gpus=1 if gpus else 0,
            compute=ray.data.ActorPoolStrategy(size=many),
            fn_constructor_args=(loading, method, asking),
        )  # fmt: skip
        for block in data.iter_batches(batch_size=None, prefetch_batches=0):
            for found, done in zip(block["found"], block["course"], strict=True):
                course.add(pickle.loads(done))
                yield pickle.loads(found)


def chunk_of(rows: Sequence[Row], preparer: Preparer, most: int, actors: int) -> int:
    """Rows that an actor is handed at a time.

    Args:
        rows: of all; the first of them say how many bytes one becomes.
        preparer: makes them ready.
        most: rows of the largest batch.
        actors: that share them.

    Returns:
        Those of some batches, but no more than memory should hold, nor than is an actor's share.
    """
    share = -(-len(rows) // actors)
    size = next((made.bytes for made in map(preparer, rows[:3]) if made.bytes), 1)
    return max(1, min(_BATCHES * most, share, WAITING_BYTES // size))


def _ready(preparer: Preparer) -> Callable[[Columns], dict[str, list[bytes]]]:
    """Makes rows ready, in whatever process of the cluster is free."""

    def ready(columns: Columns) -> dict[str, list[bytes]]:
        rows = (pickle.loads(row) for row in columns["row"])
        return {"prepared": [pickle.dumps(preparer(row)) for row in rows]}

    return ready


class Actor:
    """Holds a model, answers what it is handed, and remembers which batches fit.

    Args:
        loading: arguments of `st3.load`.
        method: how to trim.
        asking: options of `make_asker`, and `cuda_graphs`.
    """

    def __init__(
        self, loading: dict[str, Any], method: Method | None, asking: dict[str, Any]
    ) -> None:
        model, processor = load(**loading)
        options = dict(asking)
        self.cuda_graphs = options.pop("cuda_graphs")
        self.asker = make_asker(model, processor, method, **options)

    def __call__(self, columns: Columns) -> dict[str, list[bytes]]:
        """All results of some rows."""
        coming = (pickle.loads(row) for row in columns["prepared"])
        course, found = self.asker.course, []
        before = replace(course)
        for some in answer_prepared(self.asker, coming, self.cuda_graphs):
            found += some
        return {"found": [pickle.dumps(found)], "course": [pickle.dumps(course.since(before))]}


@contextmanager
def _cluster(ray: Any, address: str | None) -> Iterator[None]:
    """Connected, and quiet."""
    began = not ray.is_initialized()
    if began:
        try:
            ray.init(
                address=address or "local", log_to_driver=False, logging_level=logging.ERROR,
                include_dashboard=None if address else False, configure_logging=False,
            )  # fmt: skip
        except Exception as error:  # Ray has a type for each way of not answering
            where = address or "this machine"
            raise ValueError(f"no Ray cluster at {where}: {' '.join(str(error).split())}") from None
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield
    finally:
        if began:
            ray.shutdown()
