"""What a task's scoring calls, a paid model or Java: told from its code, before a question."""

from __future__ import annotations

import inspect
import sys
from typing import Any

_PAID = ("openai", "API_KEY", "get_chat_response", "get_server(", "llm_judge", "gpt_eval(")
_JAVA = ("pycocoevalcap", "PTBTokenizer")


def asks_judge(task: Any) -> bool:
    """Whether a score of a task is given by a model behind an API.

    Looked for in the functions that score, and in those of their module that they call.
    """
    return any(word in text for text in _called(task) for word in _PAID)


def needs_java(task: Any) -> bool:
    """Whether scoring runs Java: the module of a function that scores imports what does."""
    modules = {function.__module__ for function in _scoring(task)}
    return any(
        word in _source(sys.modules[name]) for name in modules if name in sys.modules
        for word in _JAVA
    )  # fmt: skip


def _scoring(task: Any) -> list[Any]:
    found = [task.config.process_results, *task.aggregation().values()]
    return [
        one for one in found if inspect.isfunction(one) and "lmms_eval.api" not in one.__module__
    ]


def _called(task: Any) -> list[str]:
    """Texts of the functions that score, and of what they name in their module."""
    texts: dict[Any, str] = {}
    left = _scoring(task)
    while left:
        function = left.pop()
        if function in texts:
            continue
        texts[function] = _source(function)
        names = function.__code__.co_names
        others = (function.__globals__.get(name) for name in names)
        left += [
            one for one in others
            if inspect.isfunction(one) and one.__module__ == function.__module__
        ]  # fmt: skip
    return list(texts.values())


def _source(thing: Any) -> str:
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError):
        return ""
