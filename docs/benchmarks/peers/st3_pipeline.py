"""st3 itself, as `st3.profiling.peer_worker` runs it: in a process of its own, like its peers."""

from __future__ import annotations

import runpy
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

NEEDS = {"st3": "pip install -e ."}
_ROOT = Path(__file__).resolve().parents[3]
_SHARED = runpy.run_path(str(Path(__file__).with_name("transformers_pipeline.py")))


class Pipeline:
    """A method.

    Args:
        folder, precision, threads, seed: see `st3.profiling.peer_worker`.
        method: as `st3 methods` writes them.
        compile: see `st3.trim`.
    """

    def __init__(
        self, folder: str, precision: str, threads: int, seed: int, method: str,
        compile: str = "off",
    ) -> None:  # fmt: skip
        sys.path.insert(0, str(_ROOT))
        import st3
        from st3.inference.decoding import decode
        from st3.methods import make_method

        began = time.perf_counter()
        self.model = _SHARED["load"](folder, precision, threads, seed)
        self._trim, self._decode, self._method = st3.trim, decode, make_method(method)
        self._compile = compile
        self.facts = _SHARED["facts"](self.model, began, ("transformers", "torch"))
        self.facts |= {"method": method, "compile": compile}
        self.facts["versions"]["st3"] = st3.__version__
        self._open: tuple[int, ExitStack] | None = None

    def answer(self, tensors: dict[str, Any], new: int, marks: Any) -> list[list[int]]:
        """Greedy, `new` tokens whatever they are."""
        inputs = _SHARED["fitted"](self.model, tensors)
        if self._open is None or self._open[0] != new:  # what is compiled stays for later answers
            if self._open is not None:
                self._open[1].close()
            self._open = new, ExitStack()
            self._open[1].enter_context(
                self._trim(self.model, self._method, max_new_tokens=new, compile=self._compile)
            )
        said = self._decode(self.model, inputs, endless=True, max_new_tokens=new, streamer=marks)
        tokens: list[list[int]] = said[:, -new:].tolist()
        return tokens
