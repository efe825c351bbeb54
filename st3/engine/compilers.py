"""Which compiler makes a decode step faster, by the name that a user gave it.

On a CPU inductor or OpenVINO gets the layers one by one (`st3.engine.compiled_layers`), on other
devices inductor the decoder as a whole. `auto` measures: the first step
is run a few times with and without a compiler, and what was found is remembered for this model on
this machine. It leaves a GPU alone, where recording already spares most of what compiling would,
and compiling takes half a minute (our choice).
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from st3.engine.compiled_layers import CompiledLayers
from st3.engine.inductor_code import Inductor
from st3.engine.openvino_code import OpenVino
from st3.engine.recording import first_line, warn
from st3.files import make_folder, write_text
from st3.machine import describe_machine

COMPILERS = ("off", "auto", "inductor", "openvino")
_WITHOUT = "decoding goes on without a compiled step"
_ROUNDS = 3  # of the steps that are timed
_FASTER = 1.05  # by so much a compiled step must be faster: eager ones read no dead slots


class StepCompiler:
    """Compiles a decoder's forward, and knows whether that is of use.

    Args:
        name: one of `COMPILERS`.
        forward: the decoder's own.
        decoder: on one device.

    Attributes:
        run: the compiled forward; None if there is none, or it turned out to be of no use.
    """

    def __init__(self, name: str, forward: Callable[..., Any], decoder: Any) -> None:
        self.forward = forward
        self.run: Any = None
        self._asked = ""
        if name == "off":
            return
        self._asked = _circumstances(decoder) if name == "auto" else ""
        device = next(decoder.parameters()).device
        if name == "openvino":
            if device.type != "cpu":
                warn(f"{_WITHOUT}: OpenVINO compiles for a CPU")
                return
            try:
                self.run = CompiledLayers(OpenVino(), forward)
            except ImportError:
                warn(f"{_WITHOUT}: OpenVINO is not here: pip install 'st3[openvino]'")
        elif device.type == "cpu":
            if not self._asked or recall(self._asked) != "off":
                self.run = CompiledLayers(Inductor(), forward)
        elif not self._asked:
            self.run = torch.compile(forward, backend=name, fullgraph=True)

    @property
    def by_layers(self) -> bool:
        """Whether layers are compiled one by one."""
        return isinstance(self.run, CompiledLayers)

    def try_out(self, step: Callable[[Callable[..., Any]], None]) -> None:
        """Compile, and see whether that is of use; says so where it fails.

        Args:
            step: runs the decode step through a forward; as often as we like.

        Raises:
            torch.OutOfMemoryError: whatever else a compiler raises is a warning.
        """
        try:
            step(self.run)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # compilers fail in many ways
            self.give_up(error)
            return
        if self._asked and recall(self._asked) is None:
            eager, compiled = (_seconds(step, way) for way in (self.forward, self.run))
            found = "inductor" if eager > _FASTER * compiled else "off"
            remember(self._asked, found)
            if found == "off":
                self.run = None

    def give_up(self, error: Exception) -> None:
        """Go on without; says why."""
        self.run = None
        warn(f"{_WITHOUT}: {first_line(error)}")


def recall(what: str) -> str | None:
    """What was found for these circumstances, None if nothing was."""
    found = _notes().get(what)
    return found if isinstance(found, str) else None


def remember(what: str, found: str) -> None:
    """Note it down for later processes; where nothing can be written, they measure again."""
    with suppress(OSError, RuntimeError):
        make_folder(_store().parent)
        write_text(_store(), json.dumps(_notes() | {what: found}, indent=1))


def _notes() -> dict[str, Any]:
    """All that was noted down; what is no such file is as good as none."""
    with suppress(OSError, ValueError, RuntimeError):
        found = json.loads(_store().read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def _store() -> Path:
    """Where it is noted down.

    Raises:
        RuntimeError: this user has no home.
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "st3" / "compilers.json"


def _circumstances(decoder: Any) -> str:
    """All that a measurement depends on."""
    machine = describe_machine(torch.device("cpu"))
    where = [machine[name] for name in ("cpu", "platform", "threads", "torch", "st3")]
    weights = sorted({f"{type(x).__name__} {x.dtype}" for x in decoder.parameters()})
    described = decoder.config.to_json_string(use_diff=False), weights, where
    return hashlib.sha256(repr(described).encode()).hexdigest()[:16]


def _seconds(step: Callable[[Callable[..., Any]], None], way: Callable[..., Any]) -> float:
    times = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        step(way)
        times.append(time.perf_counter() - began)
    return min(times)
