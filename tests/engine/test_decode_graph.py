"""Decode steps with static shapes equal the plain ones, and the masked oracle.

On the CPU a step is recorded as a list of ATen operations with their tensors, and a replay runs
those and no line of Python: what would go stale in a CUDA graph goes stale here. With a GPU the
same tests run on the real thing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from conftest import greedy, prompts, slow, tiny_llava
from families.zoo import ZOO
from oracle import oracle_logits
from test_oracle import CASES, ROWS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import st3
from st3.engine import compiled, recording
from st3.engine.decode_graph import DecodeGraph
from st3.engine.static_cache import StaticLayer

CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
    ],
)


class Recorder(TorchDispatchMode):
    """Notes every operation with its tensors; `replay` runs them again, on the same tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        for func, args, kwargs, result in self.operations:
            if any(r.alias_info is not None for r in func._schema.returns) and not any(
                a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments
            ):
                continue  # a view stays one
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def _record(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    step()
    recorder = Recorder()
    with recorder:
        step()
    return recorder.replay


@pytest.fixture(params=["cpu", CUDA])
def where(request: pytest.FixtureRequest) -> str:
    """The device of a test."""
    return str(request.param)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch, where: str) -> Iterator[list[DecodeGraph]]:
    """Allow recording without CUDA, and collect the graphs that are made."""
    made: list[DecodeGraph] = []
    original = DecodeGraph.__init__

    def remember(self: DecodeGraph, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        made.append(self)

    if where == "cpu":
        monkeypatch.setattr("st3.engine.recording.obstacle", lambda device: None)
        monkeypatch.setattr("st3.engine.recording.record", _record)
    monkeypatch.setattr(DecodeGraph, "__init__", remember)
    yield made
    # Nothing of a recording outlives its `with`.
    assert all(graph.recording is None for graph in made)


def _on(where: str, inputs: dict[str, Any]) -> dict[str, Any]:
    return {key: value.to(where) for key, value in inputs.items()}


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", CASES)
def test_static_steps_equal_the_oracle(
    graphs: list[DecodeGraph], name: str, rows: str, backend: str, where: str
) -> None:
    parameters, setting = CASES[name]
    model = tiny_llava(backend=backend).to(where)
    inputs = _on(where, prompts(*ROWS[rows]))
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
    answer = result.sequences[:, prompt:].cpu()
    with torch.no_grad():
        expected, _ = oracle_logits(model.cpu(), _on("cpu", inputs), answer, setting)
    got = torch.stack(result.logits, dim=1).cpu()
    torch.testing.assert_close(got, expected.float(), atol=1e-5, rtol=1e-5)
    assert "forward" not in vars(model.model.language_model)


@pytest.mark.parametrize("known", [None, pytest.param(150, marks=pytest.mark.slow)])
@pytest.mark.parametrize("rows", [["tttItttt"], ["ttItt", "tItIttttt", "ttttt"]])
@pytest.mark.parametrize(
    ("name", "parameters"),
    [("vta", {"tau": 20}), ("st3", {"stride": 2, "ratio": 0.15, "tau": 90}), ("none", {})],
)
def test_long_answers_wrap_around_and_grow(
    graphs: list[DecodeGraph],
    name: str,
    parameters: Any,
    rows: list[str],
    known: int | None,
    where: str,
) -> None:
    model, inputs = tiny_llava().to(where), _on(where, prompts(*rows))
    with st3.trim(model, name, **parameters) as session:
        want = greedy(model, inputs, 150)
        bytes_ = session.kv_bytes
    with st3.trim(model, name, cuda_graphs=True, max_new_tokens=known, **parameters) as session:
        got = greedy(model, inputs, 150)
        assert session.kv_bytes == bytes_
        wrapped = [
            int(layer.slots.end) + session.generated > layer.slots.count
            for layer in session.cache.layers  # type: ignore[union-attr]
        ]
    assert torch.equal(want.sequences, got.sequences)
    torch.testing.assert_close(torch.stack(got.logits), torch.stack(want.logits), atol=1e-5, rtol=0)
    assert graphs[0].recordings <= (1 if known else 3)
    if known:
        assert any(wrapped) == (name != "none")


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_rings_of_codes(graphs: list[DecodeGraph], kind: str, where: str) -> None:
    """Slots of a few bits wrap around like any, and are a window again for a user's next turn."""
    model = tiny_llava().double().to(where)  # noise would turn codes to their neighbours
    inputs = _on(where, prompts("ttItt", "tItIttttt", "ttttt"))
    wanted: list[Any] = []
    for recorded in (False, True):
        with st3.trim(
            model, "st3", stride=2, ratio=0.15, tau=90, max_new_tokens=120,
            kv_cache_dtype=kind, cuda_graphs=recorded,
        ) as session:  # fmt: skip
            first = greedy(model, inputs, 120)
            wanted.append(
                (first, _next_turn(model, session, first, inputs, 3, 8), session.kv_bytes)
            )
    assert graphs[0].replays >= 119
    assert wanted[0][2] == wanted[1][2]
    for want, got in zip(wanted[0][:2], wanted[1][:2], strict=True):
        assert torch.equal(want.sequences, got.sequences)
    want, got = (torch.stack(each[0].logits) for each in wanted)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


def _next_turn(model: Any, session: Any, first: Any, inputs: Any, turn: int, new: int) -> Any:
    """The user says `turn` tokens more, and the model goes on."""
    rows, device = len(first.sequences), first.sequences.device
    said = torch.arange(rows * turn, device=device).view(rows, turn) % 90 + 1
    ids = torch.cat((first.sequences, said), dim=1)
    mask = torch.ones_like(ids)
    mask[:, : inputs["attention_mask"].shape[1]] = inputs["attention_mask"]
    return model.generate(
        input_ids=ids, attention_mask=mask, past_key_values=first.past_key_values,
        max_new_tokens=new, min_new_tokens=new, do_sample=False, return_dict_in_generate=True,
    )  # fmt: skip


@pytest.mark.parametrize("known", [None, 60])
def test_what_does_not_fit_the_recording(
    graphs: list[DecodeGraph], known: int | None, where: str
) -> None:
    """A next turn, beams, sampling, an observer, all in one `with`: as without graphs."""
    model, inputs = tiny_llava().to(where), _on(where, prompts("tttItttt", "ttItt"))

    def talk(**more: Any) -> list[torch.Tensor]:
        found = []
        with st3.trim(model, "st3", stride=2, ratio=0.15, tau=30, **more) as session:
            first = greedy(model, inputs, 20)
            found.append(first.sequences)
            found.append(_next_turn(model, session, first, inputs, 3, 30).sequences)
            found.append(greedy(model, inputs, 12, num_beams=3, output_logits=False).sequences)
            torch.manual_seed(0)
            found.append(greedy(model, inputs, 12, do_sample=True).sequences)
            seen: list[int] = []
            session.observer = lambda layer, *rest: seen.append(layer)
            found.append(greedy(model, inputs, 8).sequences)
            assert len(seen) == 8 * session.layers
        return found

    want = talk()
    got = talk(cuda_graphs=True, max_new_tokens=known)
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))
    assert graphs[0].recordings == 4


@pytest.mark.parametrize("method", ["none", "st3"])
@pytest.mark.parametrize(
    ("first", "turn", "second", "known"),
    [(20, 40, 10, 60), (10, 54, 10, None), (10, 55, 10, None), (5, 1000, 60, None)],
)
def test_a_turn_that_fills_the_buffers(
    graphs: list[DecodeGraph],
    method: str,
    first: int,
    turn: int,
    second: int,
    known: int | None,
    where: str,
) -> None:
    model, inputs = tiny_llava(layers=6).to(where), _on(where, prompts("tttItttt"))
    found = []
    for more in ({}, {"cuda_graphs": True, "max_new_tokens": known}):
        with st3.trim(model, method, **more) as session:
            begun = greedy(model, inputs, first)
            found.append(_next_turn(model, session, begun, inputs, turn, second).sequences)
    assert torch.equal(*found)
    assert graphs[0].replays > second - 3


@pytest.mark.parametrize("known", [None, 24])
@pytest.mark.parametrize("name", ["none", "st3"])
def test_a_recording_serves_the_next_generations(
    graphs: list[DecodeGraph], name: str, known: int | None, where: str
) -> None:
    """Prompts of other words and lengths, padded or not; until one needs larger buffers."""
    model = tiny_llava().to(where)
    rows = [("tttItttt", "tttItttt"), ("ttItt", "tIttt"), ("ttItttt", "ttItt"), ("tIt", "tIt")]
    asked = [_on(where, prompts(*pair, seed=seed)) for seed, pair in enumerate(rows)]
    more = _on(where, prompts("ttIItttt", "ttIttt"))
    parameters = {} if name == "none" else {"stride": 2, "ratio": 0.15, "tau": 15}

    def talk(**options: Any) -> list[Any]:
        with st3.trim(model, name, max_new_tokens=known, **parameters, **options) as session:
            found = []
            for inputs in [*asked, more, *asked[:2]]:
                result = greedy(model, inputs, 20)
                found.append((result.sequences, torch.stack(result.logits), session.kv_bytes))
        return found

    for got, want in zip(talk(cuda_graphs=True), talk(), strict=True):
        assert torch.equal(got[0], want[0])
        torch.testing.assert_close(got[1], want[1], atol=1e-5, rtol=0)
        assert got[2] == want[2]
    assert (graphs[0].recordings, graphs[0].replays) == (3, 7 * 19)


_REPLAYED = (
    "none", "st3", "dart", "tome:keep=60%+st3",
    *slow("pvtp", "fastv", "random", "sparsevlm:recycle=yes"),
)  # fmt: skip


@pytest.mark.parametrize("rows", [["tttItttt"], ["ttIttIt", "ttIttIt"]])
@pytest.mark.parametrize("name", _REPLAYED)
def test_prefill_of_one_layout_is_replayed(
    graphs: list[DecodeGraph], name: str, rows: list[str], where: str
) -> None:
    """Other words, other pictures; then another layout, which is not; a next turn in between."""
    model = tiny_llava().to(where)
    asked = [_on(where, prompts(*rows, seed=seed)) for seed in range(6)]
    asked.append(_on(where, prompts("ttIt")))

    def talk(**options: Any) -> list[Any]:
        found: list[Any] = []
        with st3.trim(model, name, max_new_tokens=16, **options) as session:
            for number, inputs in enumerate(asked):
                result = greedy(model, inputs, 12)
                layers = range(1, session.layers + 1)
                kept = [session.kept(n, row) for n in layers for row in range(len(result[0]))]
                found.append((result.sequences, session.kv_bytes[:], kept, result.logits))
                if number == 4:
                    later = _next_turn(model, session, result, inputs, 3, 5)
                    found.append((later.sequences, session.kv_bytes[:], kept, ()))
        return found

    for got, want in zip(talk(cuda_graphs=True), talk(), strict=True):
        assert torch.equal(got[0], want[0])
        assert got[1:3] == want[1:3]
        for a, b in zip(got[3], want[3], strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    assert (graphs[0].prefill.recordings, graphs[0].prefill.replays) == (1, 4)
    assert all(graph.prefill._recorded is None for graph in graphs)


@pytest.mark.parametrize("spec", ["evs:keep=70%,tau=9", "dycoke:keep=60%", "vidcom2:keep=40%"])
@pytest.mark.parametrize("name", ["llava_onevision", "qwen2_5_vl"])
def test_prefills_of_videos_are_recorded(
    name: str, spec: str, graphs: list[DecodeGraph], where: str
) -> None:
    """Which frames make one is a matter of the layout: other numbers of frames are another."""
    model = ZOO[name].build().to(where)

    def talk(**options: Any) -> list[list[int]]:
        found = []
        with st3.trim(model, spec, max_new_tokens=8, **options) as session:
            for rows in (*[("ttVtItt",)] * 5, ("tVVtt",)):
                inputs = _on(where, ZOO[name].inputs(model, rows))
                pixels, draw = inputs["pixel_values_videos"], torch.Generator()
                pixels.copy_(torch.randn(pixels.shape, generator=draw.manual_seed(len(found))))
                greedy(model, inputs, 3)
                found.append(session.kept(1))
                for tensor in inputs.values():  # the memory's next owner
                    tensor.zero_()
        return found

    got, want = talk(cuda_graphs=True), talk()
    assert got == want
    assert len({*map(str, want)}) > 3
    assert (graphs[0].prefill.recordings, graphs[0].prefill.replays) == (1, 3)


def test_without_a_cache_in_between(graphs: list[DecodeGraph], where: str) -> None:
    """A bare forward after recorded generations is as it is without them."""
    model, inputs = tiny_llava().to(where), _on(where, prompts("tttItttt"))
    with torch.no_grad(), st3.trim(model, "st3"):
        want = model(**inputs, use_cache=False).logits
    with torch.no_grad(), st3.trim(model, "st3", cuda_graphs=True):
        for _ in range(4):
            before = greedy(model, inputs, 6).sequences
            assert torch.equal(model(**inputs, use_cache=False).logits, want)
            assert torch.equal(greedy(model, inputs, 6).sequences, before)
    assert graphs[0].replays == 8 * 5


def test_inference_mode_and_none_take_turns(graphs: list[DecodeGraph], where: str) -> None:
    model, inputs = tiny_llava().to(where), _on(where, prompts("tttItttt"))
    with st3.trim(model, "st3"):
        want = greedy(model, inputs, 6).sequences
    with st3.trim(model, "st3", cuda_graphs=True):
        for number in range(12):
            with torch.inference_mode(mode=number % 8 < 4):
                assert torch.equal(greedy(model, inputs, 6).sequences, want)


def test_a_replay_reads_nothing_of_the_call_that_was_recorded(
    graphs: list[DecodeGraph], where: str
) -> None:
    model = tiny_llava().to(where)
    places = []
    with torch.no_grad(), st3.trim(model, "st3", cuda_graphs=True) as session:
        for seed in range(5):
            inputs = _on(where, prompts("tttItttt", seed=seed))
            model(**inputs)
            places.append(session.key_places(9).tolist())
            for tensor in inputs.values():  # the memory's next owner
                tensor.zero_()
    assert graphs[0].prefill.replays == 3
    with torch.no_grad(), st3.trim(model, "st3") as session:
        for seed, place in enumerate(places):
            model(**_on(where, prompts("tttItttt", seed=seed)))
            assert session.key_places(9).tolist() == place


def test_long_answers_are_made_room_for(graphs: list[DecodeGraph], where: str) -> None:
    """Nobody said how long: the second answer starts as large as the first one grew."""
    model, inputs = tiny_llava().to(where), _on(where, prompts("tttItttt"))
    with st3.trim(model, "none", cuda_graphs=True):
        for _ in range(2):
            greedy(model, inputs, 150)
        grown = graphs[0].recordings
        for _ in range(3):
            greedy(model, inputs, 150)
    assert graphs[0].recordings == grown


def test_a_prefill_that_cannot_be_recorded(
    graphs: list[DecodeGraph], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    model, inputs = tiny_llava().to(where), _on(where, prompts("tttItttt"))
    original = recording.record

    def fail(step: Any, device: Any) -> Any:
        if "PrefillGraph" in getattr(step, "__qualname__", ""):
            step()
            raise RuntimeError("operation not permitted when stream is capturing")
        return original(step, device)

    with st3.trim(model, "st3"):
        want = greedy(model, inputs).sequences
    monkeypatch.setattr("st3.engine.recording.record", fail)
    with st3.trim(model, "st3", cuda_graphs=True):
        got = [greedy(model, inputs).sequences for _ in range(2)]
        with pytest.warns(UserWarning, match="prefill is not recorded: operation not permitted"):
            got.append(greedy(model, inputs).sequences)
        got.append(greedy(model, inputs).sequences)
    assert all(torch.equal(sequences, want) for sequences in got)
    assert graphs[0].prefill.recordings == 0
    assert graphs[0].replays == 4 * 11


@pytest.mark.slow
def test_a_compiled_step(where: str) -> None:
    """Compiled once for each shape: not again for another prompt, another `with`, or an answer."""
    model = tiny_llava(layers=6).to(where)
    asked = [_on(where, prompts("tttItttt", seed=0)), _on(where, prompts("ttIttt", seed=1))]
    graphs = where == "cuda"

    def talk(**options: Any) -> list[Any]:
        found = []
        for new in (12, 20):
            with st3.trim(model, "st3", tau=15, max_new_tokens=24, **options):
                found += [greedy(model, inputs, new) for inputs in asked]
        return found

    want = talk()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    pieces = compiled.compiled()
    for got, plain in zip(talk(compile="inductor", cuda_graphs=graphs), want, strict=True):
        assert torch.equal(got.sequences, plain.sequences)
        logits = torch.stack(got.logits), torch.stack(plain.logits)
        torch.testing.assert_close(*logits, atol=1e-4, rtol=0)
    if where == "cuda":
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert compiled.compiled() - pieces <= 2  # the layers' and the head's


def test_a_step_that_cannot_be_compiled(
    graphs: list[DecodeGraph], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    model, inputs = tiny_llava().to(where), _on(where, prompts("tttItttt"))

    def fail(*args: Any, **options: Any) -> Any:
        raise RuntimeError("no compiler here\nand more of it")

    with st3.trim(model, "st3"):
        want = greedy(model, inputs).sequences
    monkeypatch.setattr("torch.compile", lambda *_, **__: fail)
    monkeypatch.setattr("st3.engine.compiled_layers.piece", fail)
    with st3.trim(model, "st3", compile="inductor"):
        with pytest.warns(UserWarning, match=r"without a compiled step: no compiler here$"):
            assert torch.equal(greedy(model, inputs).sequences, want)
        assert torch.equal(greedy(model, inputs).sequences, want)  # without another word
    with (
        pytest.raises(ValueError, match="unknown compiler 'gcc'; known: off, auto, inductor"),
        st3.trim(model, "st3", compile="gcc"),
    ):
        pass


def test_hidden_states_are_not_lost(graphs: list[DecodeGraph], where: str) -> None:
    model, inputs = tiny_llava().to(where), _on(where, prompts("tttItttt"))
    with st3.trim(model, "st3", cuda_graphs=True):
        result = greedy(model, inputs, 4, output_hidden_states=True)
    assert all(len(step) == 11 for step in result.hidden_states)
    assert graphs[0].replays == 0


@pytest.mark.parametrize("kv_heads", [4, 1])
def test_half_precision(graphs: list[DecodeGraph], kv_heads: int, where: str) -> None:
    """The mask's bias is in the cache's dtype; after one step rounding has not spread."""
    model = tiny_llava(kv_heads=kv_heads).to(where, torch.bfloat16)
    inputs = _on(where, prompts("tttItttt", "ttItt"))
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    with st3.trim(model, "st3"):
        want = greedy(model, inputs, 2)
    with st3.trim(model, "st3", cuda_graphs=True):
        got = greedy(model, inputs, 2)
    torch.testing.assert_close(got.logits[1], want.logits[1], atol=0.1, rtol=0.05)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it need not")
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
    graphs: list[DecodeGraph], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    llava = tiny_llava().to(where)

    def fail(step: Any, device: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    inputs = _on(where, prompts("tttItttt"))
    with st3.trim(llava, "st3"):
        want = greedy(llava, inputs).sequences
    monkeypatch.setattr("st3.engine.recording.record", fail)
    with (
        pytest.warns(UserWarning, match="could not be recorded"),
        st3.trim(llava, "st3", cuda_graphs=True),
    ):
        got = greedy(llava, inputs).sequences
    assert torch.equal(want, got)
