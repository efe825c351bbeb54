"""The other side of `st3.profiling.peer`: one pipeline, run by another interpreter.

Peers pin other releases of transformers than st3 takes, so the two cannot share an environment.
This file imports nothing of st3 and is started as `PYTHON peer_worker.py PIPELINE.py`: it reads a
line of JSON from standard input, does what that says, answers in a line, and waits for the next one
without computing. What libraries print goes to standard error.

- `{"folder": FOLDER, "precision": "f32", "threads": 2, "seed": 0, ...}`: makes the `Pipeline` of
  PIPELINE.py, of the folder's config.json and of its weights, if some lie there; answers with the
  pipeline's `facts`.
- `{"inputs": FILE.safetensors, "new": 64}`: one greedy answer; `seconds` from its start to each of
  its tokens, the `tokens` of each row, `peak_bytes`, the most memory that the process had
  meanwhile, and the `facts` as they are then: some are known behind an answer alone.

PIPELINE.py has `class Pipeline`, made with the keys of the first request, which has `facts` and
`answer(tensors, new, marks)`; and may have `NEEDS`, module -> how it is installed. The answer to
what fails is `{"error": "..."}`, one line of text. When standard input ends, whoever asked is gone,
and so is the folder then.
"""

from __future__ import annotations

import json
import os
import runpy
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any


class Marks:
    """When each token came: a streamer of `generate`, or told by whoever has none.

    Attributes:
        times: by `time.perf_counter`, one a token.
    """

    def __init__(self) -> None:
        self.times: list[float] = []
        self._prompt_seen = False

    def put(self, value: Any) -> None:
        """The prompt, then each token of all rows."""
        if self._prompt_seen:
            self.mark()
        self._prompt_seen = True

    def mark(self, *_: Any) -> None:
        """A token has come; also a forward hook of what is called once for each."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing more is to be noted."""


def answer(pipeline: Any, inputs: str, new: int) -> dict[str, Any]:
    """One answer of a pipeline, as the protocol has it."""
    from safetensors.torch import load_file

    tensors, marks = load_file(inputs), Marks()
    _forget_peak()
    began = time.perf_counter()
    tokens = pipeline.answer(tensors, new, marks)
    return {
        "seconds": [mark - began for mark in marks.times],
        "tokens": tokens,
        "peak_bytes": _peak(),
        "facts": pipeline.facts,
    }


def _forget_peak() -> None:
    """From now on: loading and exporting are no part of an answer."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def _peak() -> int | None:
    """Bytes of main memory that this process had at most, where Linux tells.

    `getrusage` would tell those of whoever started us, if these were more.
    """
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return None


def _line(error: BaseException, needs: dict[str, str]) -> str:
    if isinstance(error, ImportError):  # transformers wraps what is really missing
        while error.__cause__ is not None:
            error = error.__cause__
        missing = str(getattr(error, "name", None))
        if missing in needs:
            return f"it has no {missing} (there: {needs[missing]})"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no more is known'}"


def main() -> None:
    """Until standard input ends."""
    here = Path(__file__).resolve().parent  # whose modules would hide others of the same names
    sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != here]
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    pipeline: Any = None
    folder = None
    needs: dict[str, str] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if "folder" in asked:
                folder = asked["folder"]
                names = runpy.run_path(sys.argv[1])
                needs = names.get("NEEDS", {})
                pipeline = names["Pipeline"](**asked)
                said: dict[str, Any] = pipeline.facts
            else:
                assert pipeline is not None, "no model yet"
                said = answer(pipeline, **asked)
        except Exception as error:  # other people's code fails in many ways
            said = {"error": _line(error, needs)}
        answers.write(json.dumps(said) + "\n")
        answers.flush()
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
