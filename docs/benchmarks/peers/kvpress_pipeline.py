"""kvpress on a LLaVA's decoder, as `st3.profiling.peer_worker` runs it.

A press compresses the KV cache of each layer right after its prefill, text and pictures alike, and
decoding goes on with what is left. As kvpress' own pipeline does, tokens are decoded one by one at
the positions that they would have had.
"""

from __future__ import annotations

import runpy
import time
from pathlib import Path
from typing import Any

NEEDS = {"kvpress": "pip install kvpress"}
_SHARED = runpy.run_path(str(Path(__file__).with_name("transformers_pipeline.py")))
_PACKAGES = ("kvpress", "transformers", "torch")


class Pipeline:
    """One press.

    Args:
        folder, precision, threads, seed: see `st3.profiling.peer_worker`.
        press: the name of its class.
        ratio: of the cache that it drops.
    """

    def __init__(
        self, folder: str, precision: str, threads: int, seed: int, press: str, ratio: float
    ) -> None:
        import kvpress

        began = time.perf_counter()
        self.model = _SHARED["load"](folder, precision, threads, seed)
        self.press = getattr(kvpress, press)(compression_ratio=ratio)
        self.facts = _SHARED["facts"](self.model, began, _PACKAGES) | {
            "press": press, "compression_ratio": ratio,
        }  # fmt: skip

    def answer(self, tensors: dict[str, Any], new: int, marks: Any) -> list[list[int]]:
        """Greedy, `new` tokens whatever they are."""
        import torch
        from transformers import DynamicCache

        inputs = _SHARED["fitted"](self.model, tensors)
        length = inputs["input_ids"].shape[1]
        cache, found = DynamicCache(), []
        with torch.no_grad():
            with self.press(self.model):
                said = self.model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
            for step in range(new):
                found.append(said.logits[:, -1].argmax(-1, keepdim=True))
                marks.mark()
                if step + 1 < new:
                    place = torch.full_like(found[-1], length + step)
                    said = self.model(
                        input_ids=found[-1], past_key_values=cache, position_ids=place,
                        use_cache=True,
                    )  # fmt: skip
        self.facts["cached_tokens"] = cache.get_seq_length()
        tokens: list[list[int]] = torch.cat(found, 1).tolist()
        return tokens
