"""What a forward may do besides the model's own arithmetic: allocations, copies, waiting.

None of it may grow with the sequence in a decode step; speed itself is for `st3 profile`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from conftest import greedy, prompts, tiny_llava
from torch.utils._python_dispatch import TorchDispatchMode

import st3
from st3.engine.cache_layer import TrimmedLayer
from st3.families.parts import find_parts

ST3 = {"stride": 2, "ratio": 0.15, "tau": 200}


class Ledger(TorchDispatchMode):
    """Bytes newly allocated and bytes copied, one entry for each decoder forward."""

    def __init__(self) -> None:
        super().__init__()
        self.allocated: list[int] = []
        self.copied: list[int] = []
        self.inside = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.inside:
            before = {x.untyped_storage().data_ptr() for x in _tensors((args, kwargs))}
            for x in _tensors(result):
                if x.untyped_storage().data_ptr() not in before:
                    self.allocated[-1] += x.untyped_storage().nbytes()
            if func.overloadpacket in (torch.ops.aten.copy_, torch.ops.aten.cat):
                self.copied[-1] += sum(x.nbytes for x in _tensors(result))
        return result


def _tensors(x: Any) -> Iterator[torch.Tensor]:
    if isinstance(x, torch.Tensor):
        yield x
    elif isinstance(x, (tuple, list)):
        for item in x:
            yield from _tensors(item)
    elif isinstance(x, dict):
        yield from _tensors(list(x.values()))


def _ledger(model: Any, pictures: int, steps: int, method: str | None, **more: Any) -> Ledger:
    """What each forward of the decoder allocates and copies; the first is the prefill."""
    decoder = find_parts(model).decoder
    inputs = prompts("tt" + "I" * pictures + "tttt")
    ledger = Ledger()

    def begin(*_: Any) -> None:
        ledger.allocated.append(0)
        ledger.copied.append(0)
        ledger.inside = True

    def end(*_: Any) -> None:
        ledger.inside = False

    handles = [decoder.register_forward_pre_hook(begin), decoder.register_forward_hook(end)]
    try:
        with nullcontext() if method is None else st3.trim(model, method, **more), ledger:
            greedy(model, inputs, steps + 1, output_logits=False)
    finally:
        for handle in handles:
            handle.remove()
    return ledger


def test_a_decode_step_does_nothing_that_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two slides of the window a step costs the same for 64 visual tokens and for 512."""
    model = tiny_llava(kv_heads=4)
    slides: list[int] = []
    original = TrimmedLayer.slide

    def slide(self: TrimmedLayer) -> None:
        slides.append(self.seen)
        original(self)

    monkeypatch.setattr(TrimmedLayer, "slide", slide)
    allocated, copied = {}, {}
    for pictures in (1, 8):
        slides.clear()
        ledger = _ledger(model, pictures, 60, "st3", max_new_tokens=61, **ST3)
        prompt = 6 + 64 * pictures
        quiet = [t for t in range(1, 61) if prompt + t - 1 not in slides]
        assert len(quiet) >= 50
        assert len(slides) <= model.config.text_config.num_hidden_layers * 60 / 32 + 1
        allocated[pictures] = {ledger.allocated[t] for t in range(1, 61)}
        copied[pictures] = {ledger.copied[t] for t in quiet}
    assert max(allocated[1]) == max(allocated[8])
    assert copied[1] == copied[8]
    stock = [_ledger(model, pictures, 4, None) for pictures in (1, 8)]
    assert stock[1].copied[2] > 5 * stock[0].copied[2]  # the ledger sees a cache that grows
    assert max(copied[8]) < stock[1].copied[2] / 20


def test_slides_are_paid_by_the_steps_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a long answer, less than a thirty-second of the cache for each token generated."""
    model = tiny_llava(layers=4, kv_heads=4)
    ledger = _ledger(model, 4, 300, "vta", max_new_tokens=301, tau=100)
    without = _ledger(model, 4, 300, "none", max_new_tokens=301)
    token = 2 * 4 * 16 * 4  # keys and values, heads, head size, fp32
    more = sum(ledger.copied[1:]) - sum(without.copied[1:])
    alive = 4 * (256 + 6)
    assert 0 < more < token * alive * 300 / 32


@contextmanager
def _profiled() -> Iterator[Callable[[], int]]:
    """Yields what tells, afterwards, the most bytes that were allocated at once."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        yield lambda: peak

    alive = peak = 0
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    for event in sorted(events, key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)


def _peak_of_prefill(model: Any, method: str | None, **more: Any) -> int:
    inputs = prompts("tt" + "I" * 16 + "tttt", "tt" + "I" * 16 + "tttt")
    with (
        torch.no_grad(),
        nullcontext() if method is None else st3.trim(model, method, max_new_tokens=16, **more),
        _profiled() as peak,
    ):
        model(**inputs, use_cache=True, logits_to_keep=1)
    return peak()


def test_prefill_needs_less_memory_than_untrimmed() -> None:
    model = tiny_llava(layers=16)
    stock, none = _peak_of_prefill(model, None), _peak_of_prefill(model, "none")
    trimmed = _peak_of_prefill(model, "st3")
    cache = 16 * 2 * 2 * 2 * 16 * 4 * (16 * 64 + 6)  # layers, K and V, rows, heads, size, bytes
    assert stock > cache  # the profiler sees it
    assert none < 1.05 * stock
    assert trimmed < stock - 0.4 * cache


class _Waits(TorchDispatchMode):
    """Counts operations whose result, or whose size, the host has to wait for."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        waiting = (
            aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten._unique2,
            aten.unique_dim, aten.repeat_interleave,
        )  # fmt: skip
        by_mask = func.overloadpacket in (aten.index, aten.index_put, aten.index_put_) and any(
            x.dtype is torch.bool for x in _tensors(args[1])
        )
        self.count += func.overloadpacket in waiting or by_mask
        return func(*args, **(kwargs or {}))


def test_waiting_is_noticed() -> None:
    some = torch.tensor([True, False])
    for wait in (lambda: some[some], lambda: some.nonzero(), lambda: bool(some.any())):
        with _Waits() as waits:
            wait()
        assert waits.count == 1


@pytest.mark.parametrize("rows", [["ttIttt"], ["ttIttt", "tIItt", "ttt"]])
@pytest.mark.parametrize("method", ["none", "st3", "fastv", "pyramiddrop", "random", "uniform"])
def test_the_host_never_waits_for_a_layer(
    method: str, rows: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the decoder and the session's steps nothing is read back from the device."""
    model, inputs = tiny_llava(), prompts(*rows)
    decoder = find_parts(model).decoder
    waits = _Waits()

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with monkeypatch.context() as patch, waits:
                for name in ("item", "tolist", "cpu", "numpy"):
                    patch.setattr(torch.Tensor, name, _fail)
                return function(*args, **kwargs)

        return call

    monkeypatch.setattr("st3.engine.record.Record.step", watched(st3.engine.record.Record.step))
    monkeypatch.setattr(decoder, "forward", watched(decoder.forward))
    with st3.trim(model, method):
        greedy(model, inputs, 8)
    assert waits.count == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("method", ["none", "st3", "fastv", "random", "uniform"])
def test_cuda_itself_sees_no_waiting(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llava().cuda()
    inputs = {key: value.cuda() for key, value in prompts("ttIttt", "tIItt", "ttt").items()}

    def strict(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            torch.cuda.set_sync_debug_mode("error")
            try:
                return function(*args, **kwargs)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        return call

    decoder = find_parts(model).decoder
    monkeypatch.setattr("st3.engine.record.Record.step", strict(st3.engine.record.Record.step))
    monkeypatch.setattr(decoder, "forward", strict(decoder.forward))
    with st3.trim(model, method):
        greedy(model, inputs, 8)


def _fail(*_: Any, **__: Any) -> Any:
    raise AssertionError("a tensor was read back by the host")
