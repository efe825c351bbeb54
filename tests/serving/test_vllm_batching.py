"""`st3 batch --engine vllm` never goes on untrimmed without a word: without vLLM."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

import st3
from st3 import demo
from st3.batch.asking import Course
from st3.batch.row import Result, Row
from st3.serving.vllm import batching
from st3.serving.vllm.counts import SEEN

OPTIONS = {"max_new_tokens": 2, "batch_size": 1}


class Engine:
    """Answers at once, and makes prompts ready as the plug-in does, or as vLLM without it."""

    def __init__(self, plugged: bool) -> None:
        self.plugged, self.waiting = plugged, list[str]()
        self.llm_engine = self

    def enqueue(self, prompts: Any, params: Any, use_tqdm: bool) -> list[str]:
        if self.plugged:
            SEEN.note(576, 144)
        self.waiting.append(f"{len(self.waiting)}-x")
        return self.waiting[-1:]

    def step(self) -> Iterator[Any]:
        said = SimpleNamespace(text="four", token_ids=[1, 2], finish_reason="stop")
        while self.waiting:
            yield SimpleNamespace(
                finished=True, request_id=self.waiting.pop(), outputs=[said],
                prompt_token_ids=[0] * 150,
            )  # fmt: skip


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A vLLM that loads the plug-in, of the oldest version."""
    found = SimpleNamespace(__version__="0.30.0", SamplingParams=dict, loads=["other", "st3"])
    plugins = SimpleNamespace(load_plugins_by_group=lambda group: dict.fromkeys(found.loads))
    monkeypatch.setitem(sys.modules, "vllm", found)
    monkeypatch.setitem(sys.modules, "vllm.plugins", plugins)
    return found


def test_a_vllm_that_would_not_trim(vllm: SimpleNamespace) -> None:
    batching.check_plugin()
    vllm.__version__ = "0.29.1"
    with pytest.raises(ValueError, match=r"^vLLM 0\.29\.1 is too old .* or --method none$"):
        batching.check_plugin()
    vllm.__version__, vllm.loads = "0.30.0", ["other"]
    with pytest.raises(ValueError, match=r"does not load the plug-in st3.*VLLM_PLUGINS"):
        batching.check_plugin()


@pytest.mark.parametrize("plugged", [True, False])
@pytest.mark.parametrize("trims", [True, False])
def test_a_row_that_was_not_trimmed(vllm: Any, trims: bool, plugged: bool) -> None:
    """Only what was to be trimmed must have been: without a method, and without a picture, none."""
    _, processor = st3.load("demo", device="cpu")
    rows = [Row("a", "how many", (), number=0), Row("b", "how many", (demo.PICTURE,), number=1)]
    rows = rows if not plugged else rows[1:]

    def answers() -> list[Result]:
        found = batching._answered(
            Engine(plugged), processor, frozenset({0}), rows, OPTIONS, Course(), trims
        )
        return [result for some in found for result in some]

    if trims and not plugged:
        with pytest.raises(ValueError, match=r"^vLLM did not trim row 1: "):
            answers()
        return
    last = answers()[-1]
    assert (last.visual_tokens, last.kept_visual_tokens) == ((576, 144) if plugged else (150, 150))
    assert last.prompt_tokens == (150 + 576 - 144 if plugged else 150)
