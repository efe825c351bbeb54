"""Which visual tokens are frames of one video: for methods that choose from each by itself.

Ids and positions tell frames (`st3.engine.frames`); kinds of tokens tell videos from pictures, and
grids, where a family has them, how many frames each video has. Read by the host, once a prefill.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise

import torch

from st3.engine.prefill import Prefill
from st3.methods.clips import Clip

_PICTURES = "pictures of one size, one after the other, were taken for frames of a video"


def tell_films(
    prefill: Prefill, visual: torch.Tensor, moving: torch.Tensor | None, frame_tokens: int | None,
    grids: torch.Tensor | None,
) -> None:  # fmt: skip
    """Let the entrance of a prefill know which videos its prompts have, if it asks.

    Args:
        visual: bool [B, n]. `moving`: bool [B, n], which tokens are of videos; `frame_tokens`: see
            `clips_of_row`.
        grids: int64 [videos, 3], frames first, if the family has them.
    """
    if prefill.entrance is not None:
        prefill.entrance.films = partial(_films, prefill, visual, moving, frame_tokens, grids)


def _films(
    prefill: Prefill, visual: torch.Tensor, moving: torch.Tensor | None, frame_tokens: int | None,
    grids: torch.Tensor | None,
) -> list[list[Clip]]:  # fmt: skip
    assert prefill.scoring.frames is not None
    frame, pictures = prefill.scoring.frames(), prefill.prompt.pictures
    kind = torch.zeros_like(frame) if moving is None else moving.to(frame)
    told = (2 * frame + kind).cpu()  # the one transfer
    said = [row[here].tolist() for row, here in zip(told, visual.cpu(), strict=True)]
    frames = [[number // 2 for number in row] for row in said]
    if moving is None:
        found = [clips_of_row(*row, None, None, ()) for row in zip(pictures, frames, strict=True)]
        if any(clip.frames > 1 for row in found for clip in row):
            prefill.record.notes.append(_PICTURES)
        return found
    films = [[bool(number % 2) for number in row] for row in said]
    known = [{n // 2 for n in row if n % 2} for row in said]
    lengths = shared([len(x) for x in known], [] if grids is None else grids[:, 0].tolist())
    return [
        clips_of_row(sizes, numbers, film, frame_tokens, mine)
        for sizes, numbers, film, mine in zip(pictures, frames, films, lengths, strict=True)
    ]


def shared(frames: Sequence[int], lengths: Sequence[int]) -> list[Sequence[int]]:
    """Which videos are whose: of prompts with so many frames, and videos with so many, in order.

    Nothing is said where that does not add up.
    """
    left, found = list(lengths), []
    for many in frames:
        mine: list[int] = []
        while left and sum(mine) + left[0] <= many:
            mine.append(left.pop(0))
        if sum(mine) != many:
            return [()] * len(frames)
        found.append(mine)
    return [()] * len(frames) if left else [*found]


def clips_of_row(
    pictures: Sequence[int],
    frame: Sequence[int],
    moving: Sequence[bool] | None,
    frame_tokens: int | None,
    lengths: Sequence[int],
) -> list[Clip]:
    """The videos of one prompt, by the numbers of its visual tokens; a picture has one frame.

    Args:
        pictures: visual tokens of each picture, frame or video that lies together.
        frame: of each visual token the number of its frame.
        moving: of each, whether it is of a video; None for families that show videos as pictures:
            there pictures of one size, one after the other, are frames.
        frame_tokens: of a frame, in families that lay frames end to end; what is left behind the
            last whole one is of none, such as the mark behind a video.
        lengths: frames of each of the prompt's videos, where that is known.
    """
    found: list[Clip] = []
    left, joins, first = list(lengths), False, 0
    for size in pictures:
        end, film = first + size, moving is None or moving[first]
        if not film:
            frames = [Clip(first, 1, size)]
        elif moving is not None and frame_tokens is not None:
            begins = [*range(first, end - frame_tokens + 1, frame_tokens)]
            frames = [Clip(begin, 1, frame_tokens) for begin in begins]
        else:
            begins = [n for n in range(first + 1, end) if frame[n] != frame[n - 1]]
            edges = pairwise([first, *begins, end])
            frames = [Clip(begin, 1, there - begin) for begin, there in edges]
        several = moving is not None and (frame_tokens is not None or len(frames) > 1)
        whole = several and not left  # frames that lie together are a video
        joins = joins and film and not whole
        for clip in frames:
            if joins and _follows(clip, found[-1]):
                found[-1] = replace(found[-1], frames=found[-1].frames + 1)
            else:
                found.append(clip)
            joins = film
            if film and left and found[-1].frames == left[0]:
                left, joins = left[1:], False
        joins, first = joins and not whole, end
    return found


def _follows(clip: Clip, last: Clip) -> bool:
    return clip.size == last.size and clip.first == last.first + last.tokens
