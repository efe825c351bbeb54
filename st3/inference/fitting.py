"""What a model's context holds of a question; for processes that have no model, too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from st3.families.base import visual_mask
from st3.families.parts import find_parts
from st3.inference.videos import Clip
from st3.inference.visuals import Visual, check_visual, pictures_of, processed


@dataclass(frozen=True)
class Room:
    """What of a model says whether a prompt fits.

    Attributes:
        tokens: longest sequence.
        visual_ids: ids of placeholders of visual tokens.
    """

    tokens: int
    visual_ids: tuple[int, ...]

    def visual(self, ids: Any) -> int:
        """Visual tokens in int64 [B, n], in the row that has most."""
        return int(visual_mask(self.visual_ids, ids).sum(1).max())


def room_of(model: Any) -> Room:
    """Of a model."""
    return Room(context(model), find_parts(model).visual_ids)


def context(model: Any) -> int:
    """Longest sequence in tokens."""
    return int(model.config.get_text_config().max_position_embeddings)


def pads(processor: Any) -> bool:
    """Whether its tokenizer can make rows of one length."""
    return processor.tokenizer.pad_token is not None


def check_pads(processor: Any, rows: int) -> None:
    """See that so many rows make a batch.

    Raises:
        ValueError: the tokenizer cannot pad.
    """
    if rows > 1 and not pads(processor):
        raise ValueError(
            "the model's tokenizer has no pad token, so questions make no batch: ask one at a time "
            "(--batch-size 1), or put a pad_token into tokenizer_config.json"
        )


def fitting_inputs(
    processor: Any, visuals: Sequence[Visual], prompts: Sequence[str], room: Room
) -> dict[str, Any]:
    """What the processor makes of prompts that show something each, padded on the left.

    Raises:
        ValueError: see `prepare`.
    """
    for visual in visuals:
        check_visual(visual, processor)
    inputs = processed(processor, visuals, prompts)
    length = inputs["input_ids"].shape[1]
    if length >= room.tokens:
        seen = room.visual(inputs["input_ids"])
        what, mend = _too_long(processor, visuals, prompts, length, seen, room.tokens)
        raise ValueError(
            f"{what} and prompt make {length} tokens, {seen} of them visual; the model's context "
            f"is {room.tokens}: {mend}"
        )
    return inputs


def fitted(processor: Any, clip: Clip, prompt: str, room: Room) -> Clip:
    """As many frames of a clip as the context holds with a prompt, evenly spread; all if they do.

    Raises:
        ValueError: see `prepare`; not even one does.
    """
    check_visual(clip, processor)
    ids = processed(processor, [clip], [prompt])["input_ids"]
    length = ids.shape[1]
    if length < room.tokens:
        return clip
    fit = _fitting(processor, clip, prompt, length, room.visual(ids), room.tokens)
    return clip.some(fit) if fit else clip  # which is refused where it is asked about


def _too_long(
    processor: Any, visuals: Sequence[Visual], prompts: Sequence[str], length: int, seen: int,
    limit: int,
) -> tuple[str, str]:  # fmt: skip
    """What it is that is too long, and what to do."""
    clip, count = visuals[0], len(pictures_of(visuals[0]))
    shorter = f"shorten the prompt by at least {length - limit + 1} tokens"
    if isinstance(clip, Clip):
        fit = _fitting(processor, clip, prompts[0], length, seen, limit)
        fewer = f"give --frames {fit}, as all of it must fit before anything is trimmed"
        return f"{count} frame{'s' * (count > 1)}", fewer if fit else shorter
    what = "picture" if count == 1 else f"{count} pictures"
    if seen < limit:
        return what, shorter
    fewer = "scale the picture down, or see whether the processor's files are this model's"
    return what, fewer if count == 1 else "show fewer, or scale them down"


def _fitting(
    processor: Any, clip: Clip, prompt: str, length: int, seen: int, limit: int
) -> int:  # fmt: skip
    """How many frames fit: tried, since processors share pixels out among them."""
    count, text = len(clip.frames), length - seen
    while count and length >= limit:
        share = count * (limit - 1 - text) // (length - text)
        count = max(0, min(count - 1, share))
        if count:
            made = processed(processor, [clip.some(count)], [prompt])
            length = int(made["input_ids"].shape[1])
    return count
