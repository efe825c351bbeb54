"""Trimming belongs to a context and the threads born inside: others are neither hit nor missed."""

from __future__ import annotations

import asyncio
import copy
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from conftest import IMAGE, greedy, prompts, tiny_llava
from transformers import LlavaForConditionalGeneration, TextIteratorStreamer

import st3

METHODS = ("st3", "pvtp", "fastv", "none")
PARAMETERS: dict[str, dict[str, Any]] = {"st3": {"stride": 2, "ratio": 0.15, "tau": 9}}
ASKED = [prompts(row, seed=number) for number, row in enumerate(["tttIt", "tItt", "ttItt", "tIt"])]


def _answer(model: Any, inputs: dict[str, Any]) -> list[int]:
    answer: list[int] = greedy(model, inputs, 10).sequences[0].tolist()
    return answer


def _in_threads(jobs: Sequence[Callable[[], Any]]) -> list[Any]:
    """Run jobs in plain threads that meet at the start; what they return, or raised."""
    found: list[Any] = [None] * len(jobs)
    together = threading.Barrier(len(jobs))

    def work(number: int) -> None:
        together.wait()
        try:
            found[number] = jobs[number]()
        except Exception as error:
            found[number] = error

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def _trimmed(model: Any, method: str, inputs: dict[str, Any]) -> tuple[list[int], list[int]]:
    with st3.trim(model, method, **PARAMETERS.get(method, {})) as session:
        answer = _answer(model, inputs)
        return answer, session.kept(8)


@pytest.fixture(scope="module")
def model() -> LlavaForConditionalGeneration:
    """Shared: trimming leaves it as it was."""
    return tiny_llava()


@pytest.fixture(scope="module")
def alone(model: Any) -> dict[str, list[tuple[list[int], list[int]]]]:
    """Each prompt's answer and tokens by each method, one after the other."""
    return {method: [_trimmed(model, method, asked) for asked in ASKED] for method in METHODS}


def test_each_thread_in_a_with_of_its_own(model: Any, alone: Any) -> None:
    jobs = [
        lambda method=method, asked=asked: _trimmed(model, method, asked)
        for asked in ASKED
        for method in METHODS
    ]
    want = [alone[method][number] for number in range(len(ASKED)) for method in METHODS]
    assert _in_threads(jobs) == want


def test_several_threads_inside_one_with(model: Any, alone: Any) -> None:
    """Each is right, and reads a record of its own."""
    with st3.trim(model, "st3", **PARAMETERS["st3"]) as session:

        def work(asked: dict[str, Any]) -> Any:
            answer = _answer(model, asked)
            time.sleep(0.05)  # the others are done, or in the middle
            return answer, session.kept(8)

        found = _in_threads([lambda asked=asked: work(asked) for asked in ASKED])
    assert found == alone["st3"]


def test_the_streaming_pattern(model: Any, alone: Any) -> None:
    """A thread started inside generates, the one that opened the `with` reads."""

    class Tokens:
        def decode(self, ids: Any, **_: Any) -> str:
            return "".join(f"{int(each)} " for each in ids)

    streamer = TextIteratorStreamer(Tokens(), skip_prompt=True)  # type: ignore[arg-type]
    with st3.trim(model, "st3", **PARAMETERS["st3"]) as session:
        thread = threading.Thread(
            target=model.generate,
            kwargs=ASKED[0]
            | {
                "max_new_tokens": 10,
                "min_new_tokens": 10,
                "do_sample": False,
                "streamer": streamer,
            },
        )
        thread.start()
        text = "".join(streamer)
        thread.join()
        answer, kept = alone["st3"][0]
        assert [int(each) for each in text.split()] == answer[ASKED[0]["input_ids"].shape[1] :]
        assert session.kept(8) == kept
        assert session.generated == 9


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_a_thread_that_ran_before_is_stock(backend: str) -> None:
    """Padded, so that it needs the masks that a trimmed model does not ask for."""
    model, inputs = tiny_llava(backend=backend), prompts("ttItttt", "tItt")
    want = greedy(model, inputs).sequences
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()
        with st3.trim(model, "st3", **PARAMETERS["st3"]):
            inside = greedy(model, inputs).sequences
            assert torch.equal(pool.submit(greedy, model, inputs).result().sequences, want)
    assert not torch.equal(inside, want)


def test_tasks_of_one_thread(model: Any, alone: Any) -> None:
    """asyncio: each task has a `with`, and sends the work to a thread of the pool."""

    async def task(method: str, number: int) -> Any:
        with st3.trim(model, method, **PARAMETERS.get(method, {})) as session:

            def work() -> Any:
                answer = _answer(model, ASKED[number])
                return answer, session.kept(8)

            return await asyncio.to_thread(work)

    async def stock() -> Any:
        await asyncio.sleep(0.02)
        return await asyncio.to_thread(_answer, model, ASKED[0])

    async def all_of_them() -> Any:
        await asyncio.to_thread(int)  # the pool's first thread is born outside
        tasks = [task(method, number) for method in METHODS for number in range(len(ASKED))]
        return await asyncio.gather(*tasks, *(stock() for _ in range(3)))

    want = [alone[method][number] for method in METHODS for number in range(len(ASKED))]
    untrimmed = _answer(model, ASKED[0])
    *found, a, b, c = asyncio.run(all_of_them())
    assert found == want
    assert a == b == c == untrimmed


def test_a_thread_belongs_to_whoever_started_it(model: Any, alone: Any) -> None:
    """Two `with`s are open; threads start meanwhile in either, deeper in one, and in none."""
    start, leave = threading.Barrier(3), threading.Event()
    found: dict[str, Any] = {}

    def hold(method: str) -> None:
        with st3.trim(model, method, **PARAMETERS.get(method, {})):
            start.wait(20)
            (found[method],) = _in_threads([lambda: _answer(model, ASKED[0])])
            ((found[method + ", deeper"],),) = _in_threads(
                [lambda: _in_threads([lambda: _answer(model, ASKED[0])])]
            )
            leave.wait(20)

    others = [threading.Thread(target=hold, args=(method,)) for method in ("st3", "pvtp")]
    for other in others:
        other.start()
    start.wait(20)
    (stock,) = _in_threads([lambda: _answer(model, ASKED[0])])
    (own,) = _in_threads([lambda: _trimmed(model, "fastv", ASKED[0])])
    leave.set()
    for other in others:
        other.join()
    assert stock == _answer(model, ASKED[0]) == alone["none"][0][0]
    assert own == alone["fastv"][0]
    for method in ("st3", "pvtp"):
        assert found[method] == found[method + ", deeper"] == alone[method][0][0]


def test_starting_threads_is_watched_while_a_with_is_open(model: Any, alone: Any) -> None:
    """Also by others, who may wrap it in between: nothing is lost and nothing goes in circles."""
    stock = threading.Thread.start
    with st3.trim(model, "none"), st3.trim(tiny_llava(), "none"):
        assert threading.Thread.start is not stock
    assert threading.Thread.start is stock
    calls = []

    def wrapped(thread: Any) -> None:
        calls.append(thread)
        ours(thread)

    want = alone["st3"][0][0]
    with st3.trim(model, "st3", **PARAMETERS["st3"]):
        ours = threading.Thread.start
        threading.Thread.start = wrapped  # type: ignore[method-assign]
        assert _in_threads([lambda: _answer(model, ASKED[0])]) == [want]
    with st3.trim(model, "st3", **PARAMETERS["st3"]):
        assert threading.Thread.start is wrapped
        assert _in_threads([lambda: _answer(model, ASKED[0])]) == [want]
        threading.Thread.start = ours  # type: ignore[method-assign]
    assert threading.Thread.start is stock
    assert len(calls) == 2


def test_a_with_that_is_left_in_another_thread(model: Any, alone: Any) -> None:
    """As a web framework drives a generator: every piece in another worker."""

    def stream() -> Any:
        with st3.trim(model, "st3", **PARAMETERS["st3"]) as session:
            yield _answer(model, ASKED[0])
            yield session.kept(8)

    pieces = stream()
    found = [*_in_threads([lambda: next(pieces)]), *_in_threads([lambda: next(pieces)])]
    _in_threads([lambda: next(pieces, None)])
    assert tuple(found) == alone["st3"][0]
    assert _answer(model, ASKED[0]) == alone["none"][0][0]


def test_leaving_while_a_thread_generates(model: Any) -> None:
    """One true line, and no answer of half a trimmed model."""
    started = threading.Event()

    def note(ids: Any, scores: Any) -> Any:
        started.set()
        return scores

    found: list[Any] = []

    def guarded() -> None:
        try:
            found.append(greedy(model, ASKED[0], 4000, logits_processor=[note]))
        except RuntimeError as error:
            found.append(error)

    with st3.trim(model, "st3"):
        thread = threading.Thread(target=guarded)
        thread.start()
        started.wait(20)
    thread.join()
    assert "belongs to an st3.trim that has ended" in str(found[0])


def test_another_model_of_the_same_config(model: Any) -> None:
    twin = LlavaForConditionalGeneration(model.config).eval()
    twin.load_state_dict(model.state_dict())
    inputs = prompts("ttItttt", "tItt")
    want = greedy(model, inputs).sequences
    before = model.config.text_config._attn_implementation
    with st3.trim(model, "st3"):
        trimmed = greedy(model, inputs).sequences
        assert torch.equal(greedy(twin, inputs).sequences, want)
        assert model.config.text_config._attn_implementation == before
        with st3.trim(twin, "st3"):
            assert torch.equal(greedy(twin, inputs).sequences, trimmed)
        inside = copy.deepcopy(model)
        assert torch.equal(greedy(inside, inputs).sequences, want)
    assert torch.equal(greedy(inside, inputs).sequences, want)
    with st3.trim(inside, "st3"):
        assert torch.equal(greedy(inside, inputs).sequences, trimmed)


def test_a_copy_made_inside_goes_its_own_way(model: Any) -> None:
    """Its weights are its own, also where the original's forward is replaced."""
    with pytest.warns(UserWarning, match="CUDA"), st3.trim(model, "st3", cuda_graphs=True):
        inside = copy.deepcopy(model)
    want = _answer(model, ASKED[0])
    with torch.no_grad():
        inside.model.language_model.layers[0].mlp.down_proj.weight.zero_()
    assert _answer(inside, ASKED[0]) != want
    assert _answer(model, ASKED[0]) == want


def test_compiled_or_recorded_one_at_a_time(model: Any, alone: Any) -> None:
    """Threads that come one after the other are served; one in the middle is not run over."""
    found: list[Any] = []

    def all_of_them() -> None:
        with st3.trim(model, "st3", cuda_graphs=True, **PARAMETERS["st3"]):
            for number in (0, 1, 0):
                answer = _in_threads([lambda number=number: _answer(model, ASKED[number])])
                assert answer == [alone["st3"][number][0]]
            found.extend(_in_threads([lambda: _answer(model, ASKED[0])] * 2))

    with pytest.warns(UserWarning, match="CUDA"):
        all_of_them()
    for each in found:
        right = each == alone["st3"][0][0]
        assert right or "one thread generates at a time" in str(each) or "earlier" in str(each)


def test_prompts_in_chunks_are_refused(model: Any) -> None:
    inputs = ASKED[0]
    for chunk in (2, 68, 400):
        with st3.trim(model, "none"), pytest.raises(ValueError, match="prefill_chunk_size"):
            model.generate(**inputs, max_new_tokens=3, prefill_chunk_size=chunk)
    assert IMAGE in inputs["input_ids"]
