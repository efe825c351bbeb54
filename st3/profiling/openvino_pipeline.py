"""OpenVINO's own pipeline, as `st3.profiling.peer_worker` runs it under another interpreter.

optimum-intel pins older releases of transformers than st3 takes. This file imports nothing of st3.
"""

from __future__ import annotations

import importlib.metadata
import time
from pathlib import Path
from typing import Any

NEEDS = dict.fromkeys(
    ("optimum", "optimum.exporters", "optimum.exporters.openvino", "openvino", "torch"),
    "pip install optimum-intel",
)
_TASK = "image-text-to-text"
_PACKAGES = ("optimum-intel", "openvino", "transformers", "torch")


class Pipeline:
    """One model, exported and compiled.

    Args:
        folder: with a config.json, and weights or none; the export goes there as well.
        precision: to compute in, as OpenVINO calls it: f32, bf16 or f16.
        threads: of OpenVINO, and of torch around it.
        seed: of the weights, where the folder has none.

    Attributes:
        facts: what to tell about it.

    Raises:
        ImportError: no optimum-intel here.
        Exception: whatever an export raises, of a family that optimum-intel does not know.
    """

    def __init__(self, folder: str, precision: str, threads: int, seed: int) -> None:
        import torch
        from optimum.exporters.openvino import export_from_model
        from optimum.intel import OVModelForVisualCausalLM
        from optimum.intel.openvino.configuration import OVConfig
        from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig

        torch.set_num_threads(threads)
        torch.manual_seed(seed)
        began = time.perf_counter()
        kind: Any = AutoModelForImageTextToText
        model: Any
        if any(Path(folder).glob("*.safetensors")):
            model = kind.from_pretrained(folder, dtype=torch.float32)
        else:
            model = kind.from_config(AutoConfig.from_pretrained(folder))
        model.eval().generation_config = GenerationConfig()
        made = time.perf_counter()
        export = str(Path(folder, "export"))
        # In float32 whatever is asked for: OpenVINO converts weights to what it computes in.
        export_from_model(
            model, export, task=_TASK, stateful=True, ov_config=OVConfig(dtype="fp32")
        )
        del model
        exported = time.perf_counter()
        hints = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": str(threads)}
        self.model: Any = OVModelForVisualCausalLM.from_pretrained(
            export, device="CPU", ov_config=hints | {"PERFORMANCE_HINT": "LATENCY"}
        )
        self._fit_to_prompts()
        compiled = self.model.language_model.request.get_compiled_model()
        self.facts = {
            "precision": _name(compiled, "INFERENCE_PRECISION_HINT"),
            "kv_cache_precision": _name(compiled, "KV_CACHE_PRECISION"),
            "threads": int(compiled.get_property("INFERENCE_NUM_THREADS")),
            "weights_seconds": made - began,
            "export_seconds": exported - made,
            "load_seconds": time.perf_counter() - exported,
            "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        }

    def _fit_to_prompts(self) -> None:
        """Prompts have a placeholder for each visual token, and no padding.

        optimum-intel's LLaVA would take the placeholders of a small picture for whole pictures.
        """
        config = self.model.config
        if getattr(config, "image_seq_length", None) is not None:
            config.image_seq_length = 1
        if not hasattr(config, "pad_token_id"):
            config.pad_token_id = None

    def answer(self, tensors: dict[str, Any], new: int, marks: Any) -> list[list[int]]:
        """Greedy, `new` tokens whatever they are; those of each row."""
        said = self.model.generate(
            **tensors, do_sample=False, max_new_tokens=new, eos_token_id=None, pad_token_id=0,
            streamer=marks,
        )  # fmt: skip
        tokens: list[list[int]] = said[:, -new:].tolist()
        return tokens


def _name(compiled: Any, key: str) -> str:
    """`f16` of a property that is a type."""
    return str(compiled.get_property(key).get_type_name())
