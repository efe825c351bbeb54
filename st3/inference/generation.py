"""One answer about a picture, streamed, with its timing and what was trimmed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin, TextStreamer

from st3.engine.session import TrimSession
from st3.engine.trim import trim
from st3.families.base import visual_mask
from st3.families.parts import find_parts
from st3.inference.chat import in_chat_format
from st3.inference.decoding import decode
from st3.inference.locate import locate
from st3.inference.pictures import PictureError, check_processed
from st3.inference.places import Places
from st3.methods import Method


@dataclass(frozen=True)
class Timing:
    """Wall-clock times in milliseconds, from the start of `generate`, vision tower included.

    `tpot_ms` is the mean over the tokens after the first, None where there is only one.
    """

    ttft_ms: float
    tpot_ms: float | None
    total_ms: float


@dataclass(frozen=True)
class Answer:
    """What the model said and what it took.

    `session` is None when stock transformers answered.
    """

    text: str
    prompt_tokens: int
    new_tokens: int
    timing: Timing
    session: TrimSession | None

    @property
    def tokens_per_second(self) -> float:
        """New tokens over the whole time."""
        return 1000 * self.new_tokens / self.timing.total_ms


class Streamer(TextStreamer):
    """Hands text on as it becomes certain, and notes when each token came.

    Args:
        tokenizer: of the model.
        on_text: gets the text piece by piece.
    """

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None] | None) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.on_text = on_text
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """The prompt first, then token by token."""
        if not self.next_tokens_are_prompt:
            self.times.append(time.perf_counter())
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Text that no later token changes."""
        if self.on_text is not None and text:
            self.on_text(text)


def timing(times: Sequence[float], began: float) -> Timing:
    """From when each token came, in seconds, and when `generate` began."""
    steps = len(times) - 1
    return Timing(
        ttft_ms=1000 * (times[0] - began),
        tpot_ms=1000 * (times[-1] - times[0]) / steps if steps else None,
        total_ms=1000 * (times[-1] - began),
    )


def prepare(
    model: PreTrainedModel, processor: ProcessorMixin, picture: Image.Image, prompt: str
) -> dict[str, torch.Tensor]:
    """The model's inputs for one question about one picture, in its own chat format.

    Raises:
        ValueError: see `in_chat_format`; a prompt that does not fit the model's context, or a
            picture that the processor would blow up.
    """
    return prepare_batch(model, processor, [picture], [prompt])


def prepare_batch(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    pictures: Sequence[Image.Image],
    prompts: Sequence[str],
) -> dict[str, torch.Tensor]:
    """The same for several, one picture each, padded on the left.

    Raises:
        ValueError: see `prepare`; or several, and a tokenizer that cannot pad.
    """
    if len(prompts) > 1 and processor.tokenizer.pad_token is None:
        raise ValueError(
            "the model's tokenizer has no pad token, so questions make no batch: ask one at a time "
            "(--batch-size 1), or put a pad_token into tokenizer_config.json"
        )
    for picture in pictures:
        check_processed(picture, processor.image_processor)
    inputs = processed(processor, pictures, prompts)
    limit = context(model)
    length = inputs["input_ids"].shape[1]
    if length >= limit:
        seen = int(visual_mask(find_parts(model).visual_ids, inputs["input_ids"]).sum(1).max())
        mend = f"shorten the prompt by at least {length - limit + 1} tokens"
        if seen >= limit:
            mend = "scale the picture down, or see whether the processor's files are this model's"
        raise ValueError(
            f"picture and prompt make {length} tokens, {seen} of them visual; the model's context "
            f"is {limit}: {mend}"
        )
    return {key: on_model(value, model) for key, value in inputs.items()}


def on_model(value: Any, model: Any) -> Any:
    """A tensor on the model's device, numbers in its dtype; anything else as it is."""
    if isinstance(value, torch.Tensor):
        return value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
    return value


def processed(
    processor: Any, pictures: Sequence[Image.Image], prompts: Sequence[str]
) -> dict[str, Any]:
    """What the processor makes of prompts with a picture each; a list a row, as some want it."""
    texts = [in_chat_format(processor, prompt) for prompt in prompts]
    images = [[picture] for picture in pictures]
    try:
        made = processor(images=images, text=texts, padding=len(texts) > 1, return_tensors="pt")
    except ValueError as error:
        if "aspect ratio" not in str(error):
            raise
        sizes = " or ".join(f"{wide} x {high}" for wide, high in {p.size for p in pictures})
        raise PictureError(
            f"a picture of {sizes} pixels is too narrow for this model's processor ({error}): crop "
            "it to a part that is less narrow"
        ) from error
    return dict(made)


def find_places(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    picture: Image.Image,
    prompt: str,
) -> Places:
    """Where the visual tokens of a question lie on its picture.

    Args:
        model, processor: from `st3.load`.
        picture, prompt: as asked.

    Raises:
        ValueError: see `prepare`; or they cannot be drawn, see `locate`.
    """
    ids = prepare(model, processor, picture, prompt)["input_ids"]
    tokens = int(visual_mask(find_parts(model).visual_ids, ids).sum())

    def process(pictures: Sequence[Image.Image]) -> dict[str, Any]:
        return processed(processor, pictures, [prompt])

    return locate(model.config, process, [picture], tokens)


def context(model: PreTrainedModel) -> int:
    """Longest sequence in tokens."""
    return int(model.config.get_text_config().max_position_embeddings)


def answer(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    picture: Image.Image,
    prompt: str,
    method: Method | None = None,
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    seed: int = 0,
    cuda_graphs: bool = False,
    on_text: Callable[[str], None] | None = None,
) -> Answer:
    """Ask one question about one picture.

    Args:
        model, processor: from `st3.load`.
        picture: RGB.
        prompt: the question, without any chat format.
        method: how to trim; None leaves everything to stock transformers.
        max_new_tokens: at most so many, fewer where the context ends.
        temperature: 0 for greedy; whatever else the checkpoint asks of `generate` is set aside.
        seed: of sampling.
        cuda_graphs: see `st3.trim`.
        on_text: gets the text piece by piece.

    Raises:
        ValueError: see `prepare`; or a method that does not fit the model.
    """
    inputs = prepare(model, processor, picture, prompt)
    length = inputs["input_ids"].shape[1]
    # Of all that can be sampled from, not of the fifty likeliest that transformers would leave.
    sampling: dict[str, Any] = (
        {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {}
    )
    streamer = Streamer(processor.tokenizer, on_text)
    torch.manual_seed(seed)
    tokens = min(max_new_tokens, context(model) - length)
    trimmed: Any = nullcontext()
    if method is not None:
        trimmed = trim(model, method, max_new_tokens=tokens, cuda_graphs=cuda_graphs)
    with trimmed as session:
        started = time.perf_counter()
        output = decode(model, inputs, streamer=streamer, max_new_tokens=tokens, **sampling)
    new = output[0, length:]
    return Answer(
        text=processor.tokenizer.decode(new, skip_special_tokens=True).strip(),
        prompt_tokens=length,
        new_tokens=len(new),
        timing=timing(streamer.times, started),
        session=session,
    )
