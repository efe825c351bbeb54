"""Time methods side by side: one process, interleaved A B C A B C, warm-up left out.

Every method runs through transformers' own `generate`, and so does `stock`, to which nothing of
ours is attached but the marks of the clock. A run with a counter in place of the clock tells
how many operations a method launches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from st3.adapters import find_adapter
from st3.methods import Method
from st3.profiling.clocks import Clock, LaunchCounter, clock_for
from st3.profiling.shape import Workload, meta_model, shape_of
from st3.trimming import trim

STOCK = "stock"
_WARM_UP = 4  # tokens


@dataclass(frozen=True)
class Run:
    """One `generate`; times in milliseconds, or operations where a counter ran.

    Attributes:
        ttft: to the first token, vision tower included.
        vision: tower alone; projector not.
        prefill: decoder alone, over the prompt.
        steps: from token to token.
        total: to the last token.
        peak: bytes of device memory at most, weights included; None off CUDA.
        kv_bytes: live keys and values after prefill and in each step; None for stock.
        allocated: bytes of the cache's buffers at the end; None for stock.
    """

    ttft: float
    vision: float
    prefill: float
    steps: tuple[float, ...]
    total: float
    peak: int | None
    kv_bytes: tuple[int, ...] | None
    allocated: int | None


@dataclass(frozen=True)
class Measured:
    """All runs of a method.

    Attributes:
        runs: in the order in which they were made.
        launched: what a run of few tokens launches, operations in place of milliseconds.
    """

    runs: tuple[Run, ...]
    launched: Run


def random_inputs(model: Any, work: Workload, seed: int = 0) -> dict[str, torch.Tensor]:
    """Prompts of random text behind and before pictures of noise, all rows different.

    Raises:
        ValueError: visual tokens that are no whole number of pictures, or a sequence longer than
            the model's context.
    """
    shape = shape_of(meta_model(model.config))
    pictures, rest = divmod(work.visual, shape.picture_tokens)
    if rest:
        raise ValueError(
            f"{work.visual} visual tokens are no whole number of pictures of "
            f"{shape.picture_tokens}: the nearest that are: "
            f"{max(1, round(work.visual / shape.picture_tokens)) * shape.picture_tokens}"
        )
    length = work.visual + work.text + work.new
    if length > shape.context:
        raise ValueError(
            f"{length} tokens of prompt and answer do not fit a context of {shape.context}"
        )
    generator = torch.Generator().manual_seed(seed)
    visual_id = find_adapter(model.config).visual_token_id(model.config)
    text = torch.randint(0, shape.vocabulary - 1, (work.batch, work.text), generator=generator)
    text += text >= visual_id  # never the placeholder
    before = work.text // 2  # LLaVA's system prompt is about so long
    visual = torch.full((work.batch, work.visual), visual_id)
    size = shape.picture_size
    pixels = torch.randn(work.batch * pictures, 3, size, size, generator=generator)
    ids = torch.cat((text[:, :before], visual, text[:, before:]), dim=1).to(model.device)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixels.to(model.device, model.dtype),
    }


def measure(
    model: Any,
    work: Workload,
    methods: Mapping[str, Method],
    *,
    repeats: int,
    min_seconds: float,
    cuda_graphs: bool = False,
    on_run: Callable[[str, int], None] = lambda name, done: None,
) -> tuple[dict[str, Measured], bool]:
    """Time `stock` and every method.

    Args:
        model: on its device, in its dtype.
        work: prompts and answers.
        methods: label -> method.
        repeats: rounds at least.
        min_seconds: go on with rounds until each method has had so long.
        cuda_graphs: of every method, see `st3.trim`; stock goes without, and so does the counting.
        on_run: told the label and the number of finished rounds before each run.

    Returns:
        Label -> runs, `stock` first; and whether Ctrl-C ended it early. Then every method has as
        many runs as there were whole rounds, and nothing is returned if there was none.

    Raises:
        ValueError: see `random_inputs`.
    """
    inputs = random_inputs(model, work)
    everyone: dict[str, Method | None] = {STOCK: None, **methods}
    counts: dict[str, Run] = {}
    runs: dict[str, list[Run]] = {name: [] for name in everyone}
    with endless(model):
        try:
            for name, method in everyone.items():
                on_run(name, 0)
                short = replace(work, new=min(work.new, _WARM_UP))
                with LaunchCounter() as counter:  # warms up, too
                    counts[name] = generate_once(model, inputs, short, method, counter)
                generate_once(model, inputs, short, method, clock_for(model.device), cuda_graphs)
            started, done = time.perf_counter(), 0
            while done < repeats or time.perf_counter() - started < min_seconds * len(everyone):
                finished = {}
                for name, method in everyone.items():
                    on_run(name, done)
                    finished[name] = generate_once(
                        model, inputs, work, method, clock_for(model.device), cuda_graphs
                    )
                done += 1
                for name, run in finished.items():
                    runs[name].append(run)
            interrupted = False
        except KeyboardInterrupt:
            interrupted = True
    if not all(runs.values()):
        return {}, interrupted
    found = {name: Measured(tuple(runs[name]), counts[name]) for name in everyone}
    return found, interrupted


class _Marks(BaseStreamer):
    """Marks at every token, and around the vision tower and the first pass of the decoder."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.tokens: list[Any] = []
        self.vision: list[Any] = []
        self.prefill: list[Any] = []
        self.prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if self.prompt_seen:
            self.tokens.append(self.clock.mark())
        self.prompt_seen = True

    def end(self) -> None:
        pass

    def see_vision(self, *_: Any) -> None:
        self.vision.append(self.clock.mark())

    def see_decoder(self, *_: Any) -> None:
        if len(self.prefill) < 2:
            self.prefill.append(self.clock.mark())


def generate_once(
    model: Any,
    inputs: dict[str, torch.Tensor],
    work: Workload,
    method: Method | None,
    clock: Clock,
    cuda_graphs: bool = False,
) -> Run:
    """One `generate` under `method`, or stock's if that is None, by this clock."""
    adapter = find_adapter(model.config)
    marks = _Marks(clock)
    tower: Any = adapter.merger(model).vision_tower
    decoder = adapter.decoder(model)
    handles = [
        tower.register_forward_pre_hook(marks.see_vision),
        tower.register_forward_hook(marks.see_vision),
        decoder.register_forward_hook(marks.see_decoder),
    ]
    on_cuda = model.device.type == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(model.device)
    trimmed: Any = nullcontext()
    if method is not None:
        trimmed = trim(model, method, max_new_tokens=work.new, cuda_graphs=cuda_graphs)
    try:
        with trimmed as session:
            # After trim's own hooks, so that their work is inside the marks.
            handles.append(decoder.register_forward_pre_hook(marks.see_decoder, prepend=True))
            start = clock.mark()
            model.generate(**inputs, max_new_tokens=work.new, do_sample=False, streamer=marks)
    finally:
        for handle in handles:
            handle.remove()
    if len(marks.tokens) != work.new:
        raise RuntimeError(f"{len(marks.tokens)} tokens came where {work.new} were asked for")
    between = clock.between
    pairs = zip(marks.vision[::2], marks.vision[1::2], strict=True)
    steps = zip(marks.tokens, marks.tokens[1:], strict=False)
    return Run(
        ttft=between(start, marks.tokens[0]),
        vision=sum(between(a, b) for a, b in pairs),
        prefill=between(*marks.prefill),
        steps=tuple(between(a, b) for a, b in steps),
        total=between(start, marks.tokens[-1]),
        peak=torch.cuda.max_memory_allocated(model.device) if on_cuda else None,
        kv_bytes=None if session is None else tuple(session.kv_bytes),
        allocated=None if session is None else session.allocated_kv_bytes,
    )


@contextmanager
def endless(model: Any) -> Iterator[None]:
    """Plain greedy answers without an end, whatever generation the checkpoint asks for."""
    before = model.generation_config
    model.generation_config = GenerationConfig(do_sample=False, use_cache=True, pad_token_id=0)
    try:
        yield
    finally:
        model.generation_config = before
