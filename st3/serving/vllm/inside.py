"""vLLM in this process, asked as a server is: quicker to start, where time is not measured."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from st3.serving.load import Answer, Ask

Asker = Callable[[Sequence[Ask]], list[Answer]]
"""From requests to what became of them, in their order."""

_OTHERS = "VLLM_ENABLE_V1_MULTIPROCESSING"


@contextmanager
def inside(model: str, settings: Mapping[str, Any] | None, **more: Any) -> Iterator[Asker]:
    """An engine while the `with` lasts; one at a time.

    Args:
        model: a folder, or a Hub id.
        settings: as `--hf-overrides` has them below `st3`; None leaves pictures whole.
        more: further arguments of `vllm.LLM`.
    """
    before = os.environ.get(_OTHERS)
    os.environ[_OTHERS] = "0"
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory

    overrides = {} if settings is None else {"st3": dict(settings)}
    engines = [LLM(model, hf_overrides=overrides, generation_config="vllm", **more)]

    def ask(asks: Sequence[Ask]) -> list[Answer]:
        outputs = engines[0].chat(
            [one.body["messages"] for one in asks],
            [
                SamplingParams(
                    temperature=one.body["temperature"], max_tokens=one.body["max_tokens"]
                )
                for one in asks
            ],
            use_tqdm=False,
        )
        return [
            Answer(200, one.outputs[0].text, prompt_tokens=len(one.prompt_token_ids))
            for one in outputs
        ]

    try:
        yield ask
    finally:
        engines.clear()  # callers may hold on to `ask`
        gc.collect()
        cleanup_dist_env_and_memory()
        if before is None:
            del os.environ[_OTHERS]
        else:
            os.environ[_OTHERS] = before
