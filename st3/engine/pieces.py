"""What the visual tokens of a prompt came as: pictures with their marks, videos with their frames.

How many tokens each has was seen while it was encoded; where it stands, and whether it is a video,
the ids tell. All on the host and before any layer: how many tokens enter follows from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from st3.engine.prompt import Prompt
from st3.engine.sight import Sight
from st3.methods.budget import Piece, films

AS_PICTURES = (
    "this family shows a video as pictures: neighbours of one size count as frames of one video"
)
_VIDEO_IDS = ("video_token_id", "video_token_index")
Sights = Mapping[str, Sight]
"""What was seen of pictures and of videos, by kind."""


def video_id(config: Any) -> int | None:
    """The placeholder of a video's tokens, if it has one of its own or shares a picture's."""
    return next((getattr(config, name) for name in _VIDEO_IDS if getattr(config, name, None)), None)


def by_kind(
    config: Any, visual: torch.Tensor, ids: torch.Tensor | None, sights: Sights
) -> dict[str, torch.Tensor]:
    """bool [B, n]: visual tokens [B, n] of what was seen, by kind."""
    if len(sights) < 2 or ids is None:
        return dict.fromkeys(sights, visual)
    number = video_id(config)
    film = torch.zeros_like(visual) if number is None else ids == number
    first, last = (getattr(config, f"video_{end}_token_id", None) for end in ("start", "end"))
    if isinstance(first, int) and isinstance(last, int):  # one placeholder for both, between marks
        film = film | (torch.eq(ids, first).cumsum(1) > torch.eq(ids, last).cumsum(1))
    return {"image": visual & ~film, "video": visual & film}


def as_pictures(merger: Any) -> bool:
    """Whether the module that merges pictures into text knows no videos, only their frames."""
    return not hasattr(merger, "get_video_features")


def with_pieces(
    prompt: Prompt, merger: Any, visual: torch.Tensor, ids: torch.Tensor | None, sights: Sights,
    *, moves: bool,
) -> Prompt:  # fmt: skip
    """The layout of a prompt with what is known of its pictures and videos.

    Args:
        visual: bool [B, n]. `ids`: int64 [B, n], if they are known.
        sights: what was seen of them when they were encoded.
        moves: whether videos are to be told from each other: then each is one piece, wherever its
            frames stand, and otherwise pieces are the prompt's pictures.

    Raises:
        ValueError: videos are to be told from each other, and cannot be.
    """
    marked = any(any(sight.marks) for sight in sights.values())
    if not any(prompt.visual) or not (marked or moves):
        return prompt
    placed = None
    if sights:
        video = by_kind(merger.config, visual, ids, sights).get("video")
        film = torch.zeros_like(visual) if video is None else video
        placed = _placed(_runs(visual.cpu(), film.cpu()), _seen(sights))
    if not moves:
        found = placed or ()
        same = tuple(tuple(piece.tokens for piece in row) for row in found) == prompt.pictures
        return replace(prompt, pieces=found) if same else prompt
    if placed is None:
        if not as_pictures(merger):
            raise ValueError(
                "which video a frame is of cannot be told: give videos as the processor makes "
                "them, not features of them"
            )
        placed = tuple(tuple(Piece(tokens) for tokens in row) for row in prompt.pictures)
    if as_pictures(merger):
        singles = ([replace(piece, frame=piece.tokens) for piece in row] for row in placed)
        placed = tuple(films(row) for row in singles)
    return replace(prompt, pieces=placed)


def check_moves(prompt: Prompt, method: str) -> None:
    """Refuse prompts without a video to a method that goes by what moves.

    Row by row, so that no answer depends on what else is in a batch.

    Raises:
        ValueError: a row has visual tokens, and none of a video.
    """
    for visual, pieces in zip(prompt.visual, prompt.pieces, strict=False):
        if visual and not any(piece.moves for piece in pieces):
            raise ValueError(
                f"the method {method!r} goes by what changes from frame to frame, and nothing "
                "moves in a still picture: give a video, or take another method"
            )


def _seen(sights: Sights) -> dict[bool, list[Piece]]:
    """Pieces by whether they are of videos."""
    pictures, videos = sights.get("image", Sight()), sights.get("video", Sight())
    marks = pictures.marks or [0] * len(pictures.lengths)
    return {
        False: [Piece(n, many) for n, many in zip(pictures.lengths, marks, strict=True)],
        True: [Piece(n, frame=frame) for n, frame in videos.films],
    }


def _runs(visual: torch.Tensor, film: torch.Tensor) -> Iterator[list[tuple[int, bool]]]:
    """Of each row of bool [B, n], the runs of visual tokens of one kind: how many, and whether of
    a video.
    """
    for row in visual.int() + (visual & film).int():
        kinds, counts = torch.unique_consecutive(row, return_counts=True)
        pairs = zip(counts.tolist(), kinds.tolist(), strict=True)
        yield [(count, kind == 2) for count, kind in pairs if kind]


def _placed(
    rows: Iterator[list[tuple[int, bool]]], seen: Mapping[bool, Sequence[Piece]]
) -> tuple[tuple[Piece, ...], ...] | None:
    """The pieces in each row, in order; None if they do not fill its runs."""
    left = {kind: iter(pieces) for kind, pieces in seen.items()}
    found = []
    for row in rows:
        pieces: list[Piece] = []
        to_come = {True: 0, False: 0}  # of a piece that lies in several runs
        for run, kind in row:
            while run:
                if not to_come[kind]:
                    piece = next(left[kind], None)
                    if piece is None or not piece.tokens:
                        return None
                    pieces.append(piece)
                    to_come[kind] = piece.tokens
                taken = min(run, to_come[kind])
                to_come[kind] -= taken
                run -= taken
        if any(to_come.values()):
            return None
        found.append(tuple(pieces))
    return None if any(next(more, None) is not None for more in left.values()) else tuple(found)
