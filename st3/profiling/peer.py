"""A pipeline beside ours: started under another interpreter, and asked in turn.

It runs in `peer_worker.py`, which says what goes over the pipes, and is a file of its own:
OpenVINO's lies here, those of other peers in docs/benchmarks/peers. While a worker answers, this
process waits, and the other way round: the two never compute at the same time.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors.torch import save_file

from st3.profiling.outcome import Run, Unavailable
from st3.profiling.shape import Workload

_WORKER = Path(__file__).with_name("peer_worker.py")
_WEIGHTS = "*.safetensors*"
_PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
_BYTES = {"f32": 4, "f16": 2, "bf16": 2, "u8": 1, "i8": 1}
_OURS = ("PYTHONPATH", "PYTHONHOME", "PYTHONWARNINGS", "VIRTUAL_ENV")
_ELSEWHERE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONUNBUFFERED": "1"}


class PeerProcess:
    """A pipeline of one configuration under another interpreter, on this CPU.

    The model is made ready when the first answer is wanted, in a temporary folder that goes with
    the `with`.

    Args:
        python: an interpreter that has what the pipeline needs.
        pipeline: the file of its class, see `peer_worker.py`.
        config: of the model.
        dtype: to compute in.
        seed: of random weights.
        weights: a folder with the model's safetensors; None: random ones.
        threads: as many as torch takes here, if None.
        options: for the pipeline beyond these.
        worker: the file that runs it.

    Attributes:
        seconds: that making the model ready took; 0 before.
        facts: what it told then, or behind its last answer: whatever the pipeline tells, versions
            among it.
        tokens: of each row of its last answer.
        peak: bytes of main memory that its process had at most; None if it cannot tell.
    """

    def __init__(
        self, python: str, pipeline: Path, config: Any, dtype: torch.dtype, *, seed: int = 0,
        weights: Path | None = None, threads: int | None = None,
        options: Mapping[str, Any] | None = None, worker: Path = _WORKER,
    ) -> None:  # fmt: skip
        self._python, self._config, self._weights = python, config, weights
        self._command = [python, str(worker), str(pipeline)]
        self._asked = {
            "precision": _PRECISIONS[dtype],
            "threads": threads or torch.get_num_threads(),
            "seed": seed,
            **(options or {}),
        }
        self.seconds = 0.0
        self.facts: dict[str, Any] = {}
        self.tokens: list[list[int]] = []
        self.peak: int | None = None
        self._process: subprocess.Popen[str] | None = None
        self._folder: Path | None = None
        self._inputs: dict[str, Any] | None = None  # that the worker's file holds
        self._failure: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

    @property
    def element(self) -> int | None:
        """Bytes of a number in its cache, codes without their scales; None before it has told."""
        return _BYTES.get(str(self.facts.get("kv_cache_precision")))

    def generate(self, inputs: dict[str, Any], work: Workload) -> Run:
        """One answer to prompts of `st3.profiling.runs.random_inputs`.

        Raises:
            Unavailable: no such interpreter, a package that is missing there, a family that the
                pipeline does not know, a worker that died; from then on always.
        """
        if self._failure is not None:
            raise Unavailable(self._failure)
        try:
            if self._process is None:
                self._open()
            assert self._folder is not None
            path = self._folder / "prompt.safetensors"
            if self._inputs is not inputs:
                save_file({name: _plain(name, value) for name, value in inputs.items()}, path)
                self._inputs = inputs
            said = self._ask({"inputs": str(path), "new": work.new})
            seconds = said["seconds"]
            if len(seconds) != work.new:
                raise Unavailable(f"{len(seconds)} tokens came where {work.new} were asked for")
        except Unavailable as error:
            self._failure = str(error)
            self.close()
            raise
        self.tokens, self.peak = said.get("tokens", []), said.get("peak_bytes")
        self.facts |= said.get("facts", {})
        steps = pairwise(seconds)
        return Run(
            ttft=1000 * seconds[0], vision=None, prefill=None,
            steps=tuple(1000 * (after - before) for before, after in steps),
            total=1000 * seconds[-1], peak=None, kv_bytes=None, allocated=None,
        )  # fmt: skip

    def close(self) -> None:
        """End the worker and remove its folder."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # an export starts others
            self._process.communicate()
            self._process = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _open(self) -> None:
        self._folder = folder = Path(tempfile.mkdtemp(prefix="st3-peer-"))
        for file in sorted(self._weights.glob(_WEIGHTS)) if self._weights is not None else ():
            (folder / file.name).symlink_to(file.resolve())
        self._config.to_json_file(folder / "config.json", use_diff=True)
        environment = {key: text for key, text in os.environ.items() if key not in _OURS}
        try:
            with (folder / "errors").open("w", encoding="utf-8") as errors:
                self._process = subprocess.Popen(
                    self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                    env=environment | _ELSEWHERE, encoding="utf-8",
                    start_new_session=True,  # Ctrl-C is for us: we end it
                )  # fmt: skip
        except OSError as error:
            raise Unavailable(f"{self._python} cannot be run ({error.strerror})") from None
        facts = self._ask(self._asked | {"folder": str(folder)})
        self.seconds = sum(took for name, took in facts.items() if name.endswith("_seconds"))
        self.facts = facts

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        except KeyboardInterrupt:  # its answer would be taken for that to the next request
            self.close()
            raise
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError:
            raise Unavailable(f"{self._python} {self._end()}") from None
        if "error" in answer:
            raise Unavailable(f"{self._python}: {answer['error']}")
        return answer

    def _end(self) -> str:
        """How the worker died, and the last that it said."""
        assert self._process is not None
        assert self._folder is not None
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:  # it closed its output, and goes on
            self._process.kill()
            code = self._process.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        said = (self._folder / "errors").read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line.strip() for line in reversed(said) if line.strip()), "it said nothing")
        return f"{how} ({last})"


def _plain(name: str, value: Any) -> torch.Tensor:
    """A tensor that any pipeline takes: on the host, numbers in float32.

    Raises:
        Unavailable: it is none.
    """
    if not isinstance(value, torch.Tensor):
        raise Unavailable(f"its prompts hold no tensor under {name!r}")
    plain: torch.Tensor = value.detach().cpu().contiguous()
    return plain.float() if plain.is_floating_point() else plain
