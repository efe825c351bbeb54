"""OpenVINO's own pipeline, run for `st3.profiling.openvino` by another interpreter.

optimum-intel pins older releases of transformers than st3 takes, so the two cannot share an
environment. This file imports nothing of st3 and is started as `PYTHON openvino_worker.py`: it
reads a line of JSON from standard input, does what that says, answers in a line, and waits for the
next one without computing. What libraries print goes to standard error.

- `{"folder": FOLDER, "precision": "f32", "threads": 2, "seed": 0}`: random weights of the
  folder's config.json, exported into it and compiled; how long both took, and with what precision
  OpenVINO says that it computes and caches.
- `{"inputs": FILE.safetensors, "new": 64}`: one greedy answer, and the seconds from its start to
  each of its tokens.

The answer to what fails is `{"error": "..."}`, one line of text. When standard input ends, whoever
asked is gone, and so is the folder then.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

_TASK = "image-text-to-text"
_NEEDED = ("optimum", "optimum.exporters", "optimum.exporters.openvino", "openvino", "torch")
_PACKAGES = ("optimum-intel", "openvino", "transformers", "torch")


class Pipeline:
    """One model, exported and compiled.

    Args:
        folder: with a config.json; the export goes there as well.
        precision: to compute in, as OpenVINO calls it: f32, bf16 or f16.
        threads: of OpenVINO, and of torch around it.
        seed: of the weights.

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
        model: Any = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
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

    def answer(self, inputs: str, new: int) -> dict[str, Any]:
        """Greedy, `new` tokens whatever they are; `seconds` to each, and `tokens` of each row."""
        from safetensors.torch import load_file

        tensors = load_file(inputs)
        marks = _Marks()
        began = time.perf_counter()
        answer = self.model.generate(
            **tensors, do_sample=False, max_new_tokens=new, eos_token_id=None, pad_token_id=0,
            streamer=marks,
        )  # fmt: skip
        seconds = [mark - began for mark in marks.times]
        return {"seconds": seconds, "tokens": answer[:, -new:].tolist()}


class _Marks:
    """A streamer that notes when each token came; the prompt comes before them."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._prompt_seen = False

    def put(self, value: Any) -> None:
        """The prompt, then each token of all rows."""
        if self._prompt_seen:
            self.times.append(time.perf_counter())
        self._prompt_seen = True

    def end(self) -> None:
        """Nothing more is to be noted."""


def _name(compiled: Any, key: str) -> str:
    """`f16` of a property that is a type."""
    return str(compiled.get_property(key).get_type_name())


def _line(error: BaseException) -> str:
    if isinstance(error, ImportError):  # transformers wraps what is really missing
        while error.__cause__ is not None:
            error = error.__cause__
        missing = str(getattr(error, "name", None))
        if missing in _NEEDED:
            return f"it has no {missing} (there: pip install optimum-intel)"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no more is known'}"


def main() -> None:
    """Until standard input ends."""
    here = Path(__file__).resolve().parent  # whose modules would hide others of the same names
    sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != here]
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    pipeline: Pipeline | None = None
    folder = None
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if "folder" in asked:
                folder = asked["folder"]
                pipeline = Pipeline(**asked)
                answer: dict[str, Any] = pipeline.facts
            else:
                assert pipeline is not None, "no model yet"
                answer = pipeline.answer(**asked)
        except Exception as error:  # exporters fail in many ways
            answer = {"error": _line(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
