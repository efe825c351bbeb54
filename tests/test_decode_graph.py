"""Decode steps with static shapes equal the plain ones, and the masked oracle.

Without a GPU the step is "recorded" by a stand-in that runs it each time: all but the CUDA graph
itself is what runs on CUDA. `test_on_cuda` is the same with the real thing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import greedy, prompts, tiny_llava
from oracle import oracle_logits
from test_oracle import CASES, ROWS

import st3
from st3.decode_graph import DecodeGraph
from st3.static_cache import StaticLayer


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[DecodeGraph]:
    """Allow recording without CUDA, and collect the graphs that are made."""
    made: list[DecodeGraph] = []
    original = DecodeGraph.__init__

    def remember(self: DecodeGraph, *args: Any) -> None:
        original(self, *args)
        made.append(self)

    def stand_in(step: Callable[[], None]) -> Callable[[], None]:
        step()
        return step

    monkeypatch.setattr("st3.decode_graph.obstacle", lambda device, backend: None)
    monkeypatch.setattr("st3.decode_graph.record", stand_in)
    monkeypatch.setattr(DecodeGraph, "__init__", remember)
    return made


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", CASES)
def test_static_steps_equal_the_oracle(
    graphs: list[DecodeGraph], name: str, rows: str, backend: str
) -> None:
    parameters, setting = CASES[name]
    model = tiny_llava(backend=backend)
    inputs = prompts(*ROWS[rows])
    prompt = inputs["input_ids"].shape[1]
    with st3.trim(model, name, **parameters) as session:
        plain = greedy(model, inputs)
        plain_bytes = session.kv_bytes
    with st3.trim(model, name, cuda_graphs=True, **parameters) as session:
        result = greedy(model, inputs)
        assert session.cache is not None
        assert all(isinstance(layer, StaticLayer) for layer in session.cache.layers)
        assert session.cache.live_bytes == session.kv_bytes[-1]
        assert session.kv_bytes == plain_bytes
    assert (graphs[0].recordings, graphs[0].replays) == (1, 11)
    assert torch.equal(result.sequences, plain.sequences)
    with torch.no_grad():
        expected, _ = oracle_logits(model, inputs, result.sequences[:, prompt:], setting)
    got = torch.stack(result.logits, dim=1)
    torch.testing.assert_close(got, expected.float(), atol=1e-5, rtol=1e-5)
    assert "forward" not in vars(model.model.language_model)


@pytest.mark.parametrize("known", [None, 150])
@pytest.mark.parametrize("rows", [["tttItttt"], ["ttItt", "tItIttttt", "ttttt"]])
@pytest.mark.parametrize(
    ("name", "parameters"),
    [("vta", {"tau": 20}), ("st3", {"stride": 2, "ratio": 0.15, "tau": 90}), ("none", {})],
)
def test_long_answers_wrap_around_and_grow(
    graphs: list[DecodeGraph], name: str, parameters: Any, rows: list[str], known: int | None
) -> None:
    model, inputs = tiny_llava(), prompts(*rows)
    with st3.trim(model, name, **parameters) as session:
        want = greedy(model, inputs, 150)
        bytes_ = session.kv_bytes
    with st3.trim(model, name, cuda_graphs=True, max_new_tokens=known, **parameters) as session:
        got = greedy(model, inputs, 150)
        assert session.kv_bytes == bytes_
        wrapped = [
            layer.slots.end + session.generated > layer.slots.count
            for layer in session.cache.layers  # type: ignore[union-attr]
        ]
    assert torch.equal(want.sequences, got.sequences)
    torch.testing.assert_close(torch.stack(got.logits), torch.stack(want.logits), atol=1e-5, rtol=0)
    assert graphs[0].recordings <= (1 if known else 3)
    if known:
        assert any(wrapped) == (name != "none")


@pytest.mark.parametrize("known", [None, 60])
def test_what_does_not_fit_the_recording(graphs: list[DecodeGraph], known: int | None) -> None:
    """A next turn, beams, an observer: as without graphs."""
    model, inputs = tiny_llava(), prompts("tttItttt", "ttItt")
    turn = torch.tensor([[5, 6, 7], [8, 9, 10]])

    def talk(**more: Any) -> list[torch.Tensor]:
        found = []
        with st3.trim(model, "st3", stride=2, ratio=0.15, tau=30, **more) as session:
            first = greedy(model, inputs, 20)
            ids = torch.cat((first.sequences, turn), dim=1)
            more_mask = torch.ones(2, 23, dtype=torch.long)
            mask = torch.cat((inputs["attention_mask"], more_mask), dim=1)
            again = model.generate(
                input_ids=ids, attention_mask=mask, past_key_values=first.past_key_values,
                max_new_tokens=30, min_new_tokens=30, do_sample=False,
            )  # fmt: skip
            found += [first.sequences, again]
            found.append(greedy(model, inputs, 12, num_beams=3, output_logits=False).sequences)
            seen: list[int] = []
            session.observer = lambda layer, *rest: seen.append(layer)
            found.append(greedy(model, inputs, 8).sequences)
            assert len(seen) == 8 * session.layers
        return found

    want = talk()
    got = talk(cuda_graphs=True, max_new_tokens=known)
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))
    assert graphs[0].recordings == 3


def test_without_cuda_it_says_so_and_goes_on(llava: Any) -> None:
    inputs = prompts("tttItttt")
    with st3.trim(llava, "st3"):
        want = greedy(llava, inputs).sequences
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with st3.trim(llava, "st3", cuda_graphs=True):
            got = greedy(llava, inputs).sequences
    assert torch.equal(want, got)
    (message,) = [str(w.message) for w in caught if "CUDA graphs" in str(w.message)]
    assert "CUDA graphs need a CUDA device, the model is on 'cpu'" in message


def test_a_step_that_cannot_be_recorded(
    graphs: list[DecodeGraph], monkeypatch: pytest.MonkeyPatch, llava: Any
) -> None:
    def fail(step: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    inputs = prompts("tttItttt")
    with st3.trim(llava, "st3"):
        want = greedy(llava, inputs).sequences
    monkeypatch.setattr("st3.decode_graph.record", fail)
    with (
        pytest.warns(UserWarning, match="could not be recorded"),
        st3.trim(llava, "st3", cuda_graphs=True),
    ):
        got = greedy(llava, inputs).sequences
    assert torch.equal(want, got)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", CASES)
def test_on_cuda(name: str) -> None:
    parameters, _ = CASES[name]
    model = tiny_llava().cuda()
    inputs = {k: v.cuda() for k, v in prompts(*ROWS["ragged"]).items()}
    with st3.trim(model, name, **parameters):
        want = greedy(model, inputs, 100)
    with st3.trim(model, name, cuda_graphs=True, **parameters):
        got = greedy(model, inputs, 100)
    assert torch.equal(want.sequences, got.sequences)
    torch.testing.assert_close(torch.stack(got.logits), torch.stack(want.logits), atol=1e-4, rtol=0)
