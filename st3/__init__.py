"""st3: faster multimodal LLMs by dropping the visual tokens that nobody attends to.

    model, processor = st3.load("demo")
    with st3.trim(model, "st3", tau=128) as session:
        model.generate(**inputs)
    answers = st3.answer_all(model, processor, rows)  # thousands

The method is ST3 (Zhuang et al., AAAI 2025, arXiv 2412.20105); see docs/method.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "answer_all", "load", "trim"]

if TYPE_CHECKING:
    from st3.batch.answering import answer_all
    from st3.engine.trim import trim
    from st3.inference.loading import load


def __getattr__(name: str) -> Any:
    # Importing st3 must not import torch: the command line's help depends on it.
    if name == "answer_all":
        from st3.batch.answering import answer_all

        return answer_all
    if name == "load":
        from st3.inference.loading import load

        return load
    if name == "trim":
        from st3.engine.trim import trim

        return trim
    raise AttributeError(f"module 'st3' has no attribute {name!r}")
