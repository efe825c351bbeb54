"""vLLM as a guest of `st3 batch`: stdout stays ours, its processes end when we do. No vLLM here.

vLLM logs to stdout, and libraries below it print there from other languages. Its engine is a
process of its own, which a parent that is killed would leave behind, with the model in memory.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import parent_process

_ASKED = "ST3_ENDS_WITH_PARENT"


@contextmanager
def guest() -> Iterator[None]:
    """While it lasts, stdout of this process and of those it starts is stderr.

    What it starts ends with it, however that may be, if it calls `end_with_parent`. Begin before
    vLLM is imported.
    """
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # also behind the end
    os.environ[_ASKED] = "1"
    sys.stdout.flush()
    try:
        ours = os.dup(1)
    except OSError:  # it is closed: nothing to keep
        yield
        return
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(ours, 1)
        os.close(ours)


def end_with_parent() -> None:
    """End this process as soon as the one that started it is gone, if that one is a host."""
    parent = parent_process()
    if parent is None or _ASKED not in os.environ:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, name="st3-parent", daemon=True).start()
