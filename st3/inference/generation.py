"""One answer about pictures or a video, streamed, with its timing and what was trimmed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin, StoppingCriteriaList

from st3.engine.session import TrimSession
from st3.engine.trim import trim
from st3.families.base import visual_mask
from st3.families.parts import find_parts
from st3.inference.decoding import decode
from st3.inference.device_map import home
from st3.inference.fitting import check_pads, context, fitting_inputs, room_of
from st3.inference.locate import locate
from st3.inference.places import Places
from st3.inference.streaming import Stop, Streamer
from st3.inference.videos import Clip
from st3.inference.visuals import (
    Visual,
    pictures_of,
    processed,
    takes_videos,
    with_pictures,
)
from st3.methods import Method

COLD = 1e-5  # temperatures below are greedy (ours, and vLLM's): logits divided by them overflow


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

    `session` is None when stock transformers answered; `ended` says whether the model ended it, and
    not the number of tokens that it was allowed.
    """

    text: str
    prompt_tokens: int
    new_tokens: int
    timing: Timing
    session: TrimSession | None
    ended: bool = True

    @property
    def tokens_per_second(self) -> float:
        """New tokens over the whole time."""
        return 1000 * self.new_tokens / self.timing.total_ms


def timing_of(times: Sequence[float], began: float) -> Timing:
    """From when each token came, in seconds, and when `generate` began."""
    steps = len(times) - 1
    return Timing(
        ttft_ms=1000 * (times[0] - began),
        tpot_ms=1000 * (times[-1] - times[0]) / steps if steps else None,
        total_ms=1000 * (times[-1] - began),
    )


def sampling(temperature: float, top_p: float | None = None) -> dict[str, Any]:
    """What `decode` is asked for: greedy below `COLD`, else sampling of all that there is, or of
    the likeliest that have a share `top_p` together.

    transformers would leave the fifty likeliest.
    """
    if 0 <= temperature < COLD:
        return {}
    share = {} if top_p is None else {"top_p": top_p}
    return {"do_sample": True, "temperature": temperature, "top_k": 0} | share


def answered(
    model: Any, processor: Any, output: torch.Tensor, length: int, streamer: Streamer,
    began: float, session: TrimSession | None,
) -> Answer:  # fmt: skip
    """What `decode` returned, int64 [1, n], behind a prompt of so many tokens."""
    new = output[0, length:]
    return Answer(
        text=processor.tokenizer.decode(new, skip_special_tokens=True).strip(),
        prompt_tokens=length,
        new_tokens=len(new),
        timing=timing_of(streamer.times, began),
        session=session,
        ended=int(new[-1]) in ends_of(model),
    )


def prepare(
    model: PreTrainedModel, processor: ProcessorMixin, visual: Visual, prompt: str
) -> dict[str, torch.Tensor]:
    """The model's inputs for one question about what is shown, in its own chat format.

    Args:
        model, processor: from `st3.load`.
        visual: a picture, several, or frames of a video; RGB.
        prompt: the question.

    Raises:
        ValueError: see `in_chat_format`; a prompt that does not fit the model's context, or a
            picture that the processor would blow up; a video, where it wants torchvision.
    """
    return prepare_batch(model, processor, [visual], [prompt])


def prepare_batch(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    visuals: Sequence[Visual],
    prompts: Sequence[str],
) -> dict[str, torch.Tensor]:
    """The same for several, padded on the left; all about pictures, or all about videos.

    Raises:
        ValueError: see `prepare`; or several, and a tokenizer that cannot pad.
    """
    check_pads(processor, len(prompts))
    inputs = fitting_inputs(processor, visuals, prompts, room_of(model))
    return {key: on_model(value, model) for key, value in inputs.items()}


def on_model(value: Any, model: Any) -> Any:
    """A tensor on the model's device, numbers in its dtype; anything else as it is.

    From pinned memory the host does not wait for it.
    """
    if isinstance(value, torch.Tensor):
        numbers = model.dtype if value.is_floating_point() else value.dtype
        return value.to(home(model), numbers, non_blocking=True)
    return value


def find_places(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    visual: Visual,
    prompt: str,
) -> Places:
    """Where the visual tokens of a question lie on what it shows.

    Args:
        model, processor: from `st3.load`.
        visual, prompt: as asked.

    Raises:
        ValueError: see `prepare`; or they cannot be drawn, see `locate`.
    """
    ids = prepare(model, processor, visual, prompt)["input_ids"]
    tokens = int(visual_mask(find_parts(model).visual_ids, ids).sum())

    def process(pictures: Sequence[Image.Image]) -> dict[str, Any]:
        return processed(processor, [with_pictures(visual, pictures)], [prompt])

    video = isinstance(visual, Clip) and takes_videos(processor)
    return locate(model.config, process, pictures_of(visual), tokens, video=video)


def ends_of(model: PreTrainedModel) -> set[int]:
    """Ids of tokens that end an answer."""
    ends: Any = model.generation_config.eos_token_id
    return set(ends) if isinstance(ends, list) else {ends} - {None}


def answer(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    visual: Visual,
    prompt: str,
    method: Method | None = None,
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    seed: int = 0,
    cuda_graphs: bool = False,
    compile: str = "off",
    on_text: Callable[[str], None] | None = None,
) -> Answer:
    """Ask one question about a picture, several, or a video.

    Args:
        model, processor: from `st3.load`.
        visual: RGB: a picture, pictures in their order, or a `Clip` of a video.
        prompt: the question, without any chat format.
        method: how to trim; None leaves everything to stock transformers.
        max_new_tokens: at most so many, fewer where the context ends.
        temperature: 0, or below `COLD`, for greedy; whatever else the checkpoint asks of `generate`
            is set aside.
        seed: of sampling.
        cuda_graphs, compile: see `st3.trim`.
        on_text: gets the text piece by piece.

    Raises:
        ValueError: see `prepare`; or a method that does not fit the model.
    """
    inputs = prepare(model, processor, visual, prompt)
    return answer_inputs(
        model, processor, inputs, method,
        max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, cuda_graphs=cuda_graphs,
        compile=compile, on_text=on_text,
    )  # fmt: skip


def answer_inputs(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    inputs: dict[str, torch.Tensor],
    method: Method | None = None,
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float | None = None,
    seed: int = 0,
    cuda_graphs: bool = False,
    compile: str = "off",
    on_session: Callable[[TrimSession], None] | None = None,
    on_text: Callable[[str], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Answer:
    """The same to inputs that were prepared.

    Args:
        model, processor, method: as for `answer`, as are the options named there.
        inputs: of one prompt, on the model's device.
        top_p: sample of the likeliest tokens that have this share together; None: of all.
        on_session: gets what `st3.trim` hands out, for whoever wants to look while it goes on.
        stop: asked after each token whether to leave it at that.

    Raises:
        ValueError: a method that does not fit the model.
    """
    length = inputs["input_ids"].shape[1]
    streamer = Streamer(processor.tokenizer, on_text)
    torch.manual_seed(seed)
    tokens = min(max_new_tokens, context(model) - length)
    trimmed: Any = nullcontext()
    if method is not None:
        trimmed = trim(
            model, method, max_new_tokens=tokens, cuda_graphs=cuda_graphs, compile=compile
        )
    with trimmed as session:
        if on_session is not None and session is not None:
            on_session(session)
        started = time.perf_counter()
        output = decode(
            model, inputs, streamer=streamer, max_new_tokens=tokens,
            stopping_criteria=StoppingCriteriaList([Stop(stop)] if stop else []),
            **sampling(temperature, top_p),
        )  # fmt: skip
    return answered(model, processor, output, length, streamer, started, session)
