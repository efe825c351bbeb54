"""One `generate`, timed: a variant of it, and its prompt.

Every variant runs through transformers' own `generate`, and so does `stock`, to which nothing of
ours is attached but the marks of a clock; all but a peer, which is another process.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from transformers import CompileConfig

from st3.engine.recording import first_line
from st3.engine.trim import trim
from st3.families.base import picture_id
from st3.families.meta import meta_model
from st3.families.parts import argument_names, find_parts
from st3.inference.decoding import decode
from st3.inference.device_map import home
from st3.inference.generation import on_model
from st3.methods import Method
from st3.profiling.clocks import Clock
from st3.profiling.marks import Marks
from st3.profiling.outcome import Peer, Run, Unavailable
from st3.profiling.picture import encode, picture_of, tower_of
from st3.profiling.shape import Workload, shape_of

STOCK, COMPILED_STOCK = "stock", "stock + compiled"
_KINDS = ("mm_token_type_ids", "token_type_ids")  # 0 text, 1 picture
_PREPARE = 3  # short generations: the first records decode, the third prefill


@dataclass(frozen=True)
class Variant:
    """A way to generate.

    Attributes:
        method: trimmed so; None is transformers' own, with nothing of ours.
        cuda_graphs, compile: of a method, see `st3.trim`.
        static: of stock, its static cache and the decode step that transformers compiles then.
        peer: that does it in place of the model.
    """

    method: Method | None = None
    cuda_graphs: bool = False
    compile: str = "off"
    static: bool = False
    peer: Peer | None = None

    @property
    def kind(self) -> str:
        """How its cache holds keys and values."""
        return "auto" if self.method is None else self.method.kv_cache_dtype

    @property
    def compiles(self) -> bool:
        """Whether its first run makes something ready that later ones find."""
        return self.static or self.peer is not None or self.prepares

    @property
    def prepares(self) -> bool:
        """Whether the first generation of a `with` makes ready for the later ones."""
        return self.cuda_graphs or self.compile != "off"

    @property
    def seen_through(self) -> bool:
        """Whether operations can be counted where it runs."""
        return not self.static and self.peer is None

    def trimmed(self, model: Any, new: int) -> AbstractContextManager[Any]:
        """Its `st3.trim`, for answers of `new` tokens; of stock, nothing."""
        if self.method is None:
            return nullcontext()
        return trim(
            model, self.method, max_new_tokens=new, cuda_graphs=self.cuda_graphs,
            compile=self.compile,
        )  # fmt: skip

    def asked(self) -> dict[str, Any]:
        """What `generate` is asked for beyond the answer."""
        if not self.static:
            return {}
        how: Any = CompileConfig()
        how._compile_all_devices = True  # else it compiles on accelerators only
        return {"cache_implementation": "static", "compile_config": how}

    def prepare(self, model: Any, inputs: dict[str, Any]) -> None:
        """Inside `trimmed`: compile and record what later generations find ready."""
        if self.prepares:
            for _ in range(_PREPARE):
                decode(model, inputs, endless=True, max_new_tokens=3)


def beside_stock(
    methods: Mapping[str, Method], *, cuda_graphs: bool = False, compile: str = "off"
) -> dict[str, Variant]:
    """`stock`, and each method under its label; where these are compiled, stock is, too."""
    trimmed = {name: Variant(method, cuda_graphs, compile) for name, method in methods.items()}
    compiled = {COMPILED_STOCK: Variant(static=True)} if compile != "off" else {}
    return {STOCK: Variant(), **compiled, **trimmed}


def random_inputs(model: Any, work: Workload, seed: int = 0) -> dict[str, Any]:
    """Prompts of random text behind and before pictures of noise, all rows different.

    Raises:
        ValueError: visual tokens that are no whole number of pictures, or a sequence longer than
            the model's context.
    """
    shape = shape_of(meta_model(model.config))
    each = picture_of(model.config, work.picture, work.together).tokens
    pictures, rest = divmod(work.visual, each)
    if rest:
        raise ValueError(
            f"{work.visual} visual tokens are no whole number of pictures of {each}: the nearest "
            f"that are: {max(1, round(work.visual / each)) * each}"
        )
    length = work.visual + work.text + work.new
    if length > shape.context:
        raise ValueError(
            f"{length} tokens of prompt and answer do not fit a context of {shape.context}"
        )
    generator = torch.Generator().manual_seed(seed)
    special = find_parts(model).visual_ids
    place = picture_id(model.config, special)
    words = shape.vocabulary - len(special)
    text = torch.randint(0, words, (work.batch, work.text), generator=generator)
    for number in special:  # which go up: never a placeholder
        text += text >= number
    before = work.text // 2  # LLaVA's system prompt is about so long
    visual = torch.full((work.batch, each), place)
    parts, rest_of_text = [text[:, :before]], text[:, before:]
    for _ in range(pictures):  # a word between two of them, where there are words enough
        parts += [visual, rest_of_text[:, :1] if rest_of_text.shape[1] > 1 else text[:, :0]]
        rest_of_text = rest_of_text[:, parts[-1].shape[1] :]
    ids = torch.cat((*parts, rest_of_text), dim=1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    taken = argument_names(type(model).forward)
    inputs |= {name: (ids == place).long() for name in _KINDS if name in taken}
    count = work.batch * pictures
    encoded = encode(model.config, work.picture, count, seed, together=work.together)
    for name, value in encoded.items():
        if name in taken:
            inputs[name] = value
    return {name: on_model(value, model) for name, value in inputs.items()}


def generate_once(
    model: Any, inputs: dict[str, Any], work: Workload, variant: Variant, clock: Clock
) -> Run:
    """One `generate` of a variant by this clock, greedy and as long as the work says.

    With CUDA graphs or a compiler it is a later one inside its `with`, as most are: the first ones
    record decode and prefill.

    Raises:
        Unavailable: a peer that cannot be had, or stock whose step transformers cannot compile.
    """
    if variant.peer is not None:
        return variant.peer.generate(inputs, work)
    marks = Marks(clock)
    device = home(model)
    on_cuda = device.type == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    try:
        with variant.trimmed(model, work.new) as session:
            if work.new > 1:
                variant.prepare(model, inputs)
            marks.hang(tower_of(model), find_parts(model).decoder)
            if session is not None:
                session.mark = marks.see_choice
            start = clock.mark()
            decode(
                model, inputs, endless=True, max_new_tokens=work.new, streamer=marks,
                **variant.asked(),
            )  # fmt: skip
    except Exception as error:  # compilers fail in many ways
        if not variant.static or isinstance(error, torch.OutOfMemoryError):
            raise
        raise Unavailable(f"transformers' compiled step: {first_line(error)}") from error
    finally:
        marks.remove()
    if len(marks.tokens) != work.new:
        raise RuntimeError(f"{len(marks.tokens)} tokens came where {work.new} were asked for")
    between = clock.between
    pairs = zip(marks.vision[::2], marks.vision[1::2], strict=True)
    steps = zip(marks.tokens, marks.tokens[1:], strict=False)
    choices = zip(marks.choices[::2], marks.choices[1::2], strict=True)
    return Run(
        ttft=between(start, marks.tokens[0]),
        vision=sum(between(a, b) for a, b in pairs),
        prefill=between(*marks.prefill),
        steps=tuple(between(a, b) for a, b in steps),
        total=between(start, marks.tokens[-1]),
        peak=torch.cuda.max_memory_allocated(device) if on_cuda else None,
        kv_bytes=None if session is None else tuple(session.kv_bytes),
        allocated=None if session is None else session.allocated_kv_bytes,
        selection=sum(between(a, b) for a, b in choices)
        if marks.choices or (session is not None and not variant.cuda_graphs)
        else None,
        entered=None if session is None else session.record.turns[0].entering,
        recording=None if session is None else 1000 * session.recording_seconds or None,
    )
