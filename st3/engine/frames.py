"""Which frame of a video, or which picture, a visual token is of: from ids and positions alone.

Neither pixels nor grids are there where tokens are chosen: `generate` has encoded them beforehand.
What is there tells as much: most families put text between frames; some count time in a position
axis of its own; others lay frames of so many tokens end to end, which their adapter knows.
"""

from __future__ import annotations

import torch


def frame_numbers(
    visual: torch.Tensor,
    positions: torch.Tensor | None = None,
    film: torch.Tensor | None = None,
    frame_tokens: int | None = None,
) -> torch.Tensor:
    """int64 [B, n]: for each visual token the number of its frame or picture, through its row.

    A run of visual tokens with nothing between is one, but where time goes on within it. No
    synchronisation.

    Args:
        visual: bool [B, n], which tokens are visual.
        positions: position ids; those of three axes [3, B, n], or of text and three [4, B, n], have
            time first. Any other say nothing.
        film: bool [B, n], which tokens are of videos.
        frame_tokens: tokens of a frame of those; what is left at the end of a run joins its last.
    """
    before = torch.zeros_like(visual)
    before[:, 1:] = visual[:, :-1]
    begins = visual & ~before
    if positions is not None and positions.dim() == 3 and len(positions) in (3, 4):
        time = positions[-3].expand(visual.shape)
        later = torch.zeros_like(visual)
        later[:, 1:] = time[:, 1:] != time[:, :-1]
        begins = begins | (visual & later)
    if film is not None and frame_tokens:
        place = torch.arange(visual.shape[1], device=visual.device)
        first = torch.where(begins, place, 0).cummax(1).values
        ends = torch.zeros_like(visual)
        ends[:, :-1] = ~visual[:, 1:] | begins[:, 1:]
        ends[:, -1] = True
        last = torch.where(ends, place, visual.shape[1]).flip(1).cummin(1).values.flip(1)
        offset, length = place - first, last - first + 1
        whole = offset + frame_tokens <= length
        begins = begins | (film & visual & whole & (offset % frame_tokens == 0))
    return (begins.long().cumsum(1) - 1).clamp_min(0)
