"""The `sparsevlm` package on Qwen2.5-VL, as `st3.profiling.peer_worker` runs it.

Its `sparsevlm_generate` prefills with all attention weights, which asks for eager attention, prunes
the cache, and generates from the prompt's last token. It has no streamer: a token has come when the
LM head has run, but for the prefill's, which gives none. It takes the first tokens of a prompt for
the visual ones; that changes what it keeps, not how long it takes.
"""

from __future__ import annotations

import runpy
import time
from pathlib import Path
from typing import Any

NEEDS = {"sparsevlm": "pip install --no-deps sparsevlm"}
_SHARED = runpy.run_path(str(Path(__file__).with_name("transformers_pipeline.py")))
_PACKAGES = ("sparsevlm", "transformers", "torch")


class Pipeline:
    """Its own `generate`.

    Args:
        folder, precision, threads, seed: see `st3.profiling.peer_worker`.
        keep: share of the visual tokens.
    """

    def __init__(self, folder: str, precision: str, threads: int, seed: int, keep: float) -> None:
        from sparsevlm import sparsevlm_generate

        began = time.perf_counter()
        self.model = _SHARED["load"](folder, precision, threads, seed, attn_implementation="eager")
        self.generate, self.keep = sparsevlm_generate, keep
        self.facts = _SHARED["facts"](self.model, began, _PACKAGES) | {"keep": keep}

    def answer(self, tensors: dict[str, Any], new: int, marks: Any) -> list[list[int]]:
        """Greedy, `new` tokens."""
        inputs = _SHARED["fitted"](self.model, tensors)
        visual = int((inputs["input_ids"][0] == self.model.config.image_token_id).sum())
        passes = 0

        def passed(*_: Any) -> None:
            nonlocal passes
            passes += 1
            if passes > 1:
                marks.mark()

        hook = self.model.lm_head.register_forward_hook(passed)
        try:
            said = self.generate(
                self.model, None, inputs, n_vis=visual, keep_n_vis=round(self.keep * visual),
                max_new_tokens=new, device="cpu",
            )  # fmt: skip
        finally:
            hook.remove()
        tokens: list[list[int]] = said[:, -new:].tolist()
        return tokens
