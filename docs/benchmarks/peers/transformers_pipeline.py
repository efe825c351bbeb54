"""Stock transformers with a cache of its choice, as `st3.profiling.peer_worker` runs it.

Nothing of st3 is in it: it is what all others are held against, and two rows of its own.
"""

from __future__ import annotations

import importlib.metadata
import time
from pathlib import Path
from typing import Any

NEEDS = {"torch": "pip install torch", "transformers": "pip install transformers"}
DTYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
_PACKAGES = ("transformers", "torch", "hqq", "optimum-quanto")


def load(folder: str, precision: str, threads: int, seed: int, **more: Any) -> Any:
    """The folder's model, or random weights of its configuration where it has none.

    Args:
        more: for transformers, such as `attn_implementation`.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig

    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    dtype, kind = getattr(torch, DTYPES[precision]), AutoModelForImageTextToText
    model: Any
    if any(Path(folder).glob("*.safetensors")):
        model = kind.from_pretrained(folder, dtype=dtype, **more)
    else:
        model = kind.from_config(AutoConfig.from_pretrained(folder), dtype=dtype, **more)
    model.eval().generation_config = GenerationConfig()
    return model


def fitted(model: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    """Pixels in the model's dtype."""
    return {
        name: value.to(model.dtype) if value.is_floating_point() else value
        for name, value in tensors.items()
    }


def facts(model: Any, began: float, packages: tuple[str, ...]) -> dict[str, Any]:
    """What is told about any model of torch."""
    import torch

    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "precision": {word: key for key, word in DTYPES.items()}[
            str(model.dtype).removeprefix("torch.")
        ],
        "threads": torch.get_num_threads(),
        "load_seconds": time.perf_counter() - began,
        "versions": found,
    }


class Pipeline:
    """transformers' own `generate`.

    Args:
        folder, precision, threads, seed: see `st3.profiling.peer_worker`.
        cache: dynamic, static (its decode step is compiled, as transformers does it) or quantized.
        backend, bits: of a quantised one.
    """

    def __init__(
        self, folder: str, precision: str, threads: int, seed: int, cache: str = "dynamic",
        backend: str = "hqq", bits: int = 4,
    ) -> None:  # fmt: skip
        began = time.perf_counter()
        self.model = load(folder, precision, threads, seed)
        self._more: dict[str, Any] = {}
        if cache == "static":
            from transformers import CompileConfig

            how: Any = CompileConfig()
            how._compile_all_devices = True  # else it compiles on accelerators only
            self._more = {"cache_implementation": "static", "compile_config": how}
        elif cache == "quantized":
            axis = {"axis_key": 1, "axis_value": 1} if backend == "hqq" else {}
            self._more = {
                "cache_implementation": "quantized",
                "cache_config": {"backend": backend, "nbits": bits, **axis},
            }
        self.facts = facts(self.model, began, _PACKAGES) | {"cache": cache}

    def answer(self, tensors: dict[str, Any], new: int, marks: Any) -> list[list[int]]:
        """Greedy, `new` tokens whatever they are."""
        said = self.model.generate(
            **fitted(self.model, tensors), do_sample=False, max_new_tokens=new, eos_token_id=None,
            pad_token_id=0, streamer=marks, **self._more,
        )  # fmt: skip
        tokens: list[list[int]] = said[:, -new:].tolist()
        return tokens
