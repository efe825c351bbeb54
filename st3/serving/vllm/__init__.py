"""A vLLM plug-in that trims pictures before layer 1 (`pip install "st3[vllm]"`, docs/serving.md).

vLLM calls `register` in every process of its own; nothing heavy is imported there. What is chosen
is chosen by the library's own selectors, from the same `View` as in transformers.
"""

from __future__ import annotations


def register() -> None:
    """Entry point of the group `vllm.general_plugins`.

    Raises:
        SystemExit: this vLLM is too old, and trimming is asked for on the command line.
    """
    from st3.serving.vllm.guest import end_with_parent
    from st3.serving.vllm.startup import hook_in

    end_with_parent()
    hook_in()
